"""Sheets of original, masked and reconstructed pictures: right pixels, right place, nobody else's to read."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from held_out_samples import MemoryDataset, made_config, made_dataset, made_model, made_tokenizer
from PIL import Image

from mpma.data.storage import open_storage
from mpma.training.pictures import PictureDrawer, picture_sheet


def drawer_of(dataset: MemoryDataset, folder: Path) -> PictureDrawer:
    return PictureDrawer(
        dataset,
        made_config(),
        made_tokenizer(dataset),
        open_storage(folder),
        target_scale=1,
        device=torch.device("cpu"),
        synthetic=True,
    )


def test_a_sheet_shows_the_stages_side_by_side_and_pixel_for_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    stages = [torch.randint(0, 256, (2, 1, 32, 32), generator=generator) for _ in range(3)]
    sheet = np.asarray(picture_sheet(*(stage / 255 for stage in stages), title=["SYNTHETIC phantom"]))
    found = 0
    for stage in stages:
        for picture in stage:
            large = np.kron(picture[0].numpy(), np.ones((5, 5)))
            corners = np.argwhere(sheet == large[0, 0])
            found += any(
                sheet[top : top + 160, left : left + 160].shape == (160, 160)
                and (sheet[top : top + 160, left : left + 160] == large).all()
                for top, left in corners
            )
    assert found == 6


def test_a_title_is_written_above_the_pictures() -> None:
    black = torch.zeros(1, 1, 32, 32)
    plain = np.asarray(picture_sheet(black, black, black, title=[""]))
    titled = np.asarray(picture_sheet(black, black, black, title=["SYNTHETIC phantom"]))
    differs = np.argwhere(plain != titled)
    assert len(differs) > 50
    assert differs[:, 0].max() < 30


def test_pictures_are_files_of_the_run_directory_that_only_the_owner_reads(tmp_path: Path) -> None:
    dataset = made_dataset(train=4)
    folder = tmp_path / "pictures"
    model = made_model(made_config(), made_tokenizer(dataset))
    drawer = drawer_of(dataset, folder)
    model.train()
    state = torch.get_rng_state()
    drawer(model, 0)
    drawer(model, 200)
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000000.png", "step_00000200.png"]
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    with Image.open(folder / "step_00000000.png") as sheet:
        assert sheet.mode == "L"
        assert sheet.height > 6 * 160


def test_visible_patches_are_shown_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = made_dataset(train=4)
    shown: list[torch.Tensor] = []

    def keep(*stages: torch.Tensor, **_: object) -> Image.Image:
        shown.extend(stages[:3])
        return Image.new("L", (1, 1))

    monkeypatch.setattr("mpma.training.pictures.picture_sheet", keep)
    drawer_of(dataset, tmp_path)(made_model(made_config(), made_tokenizer(dataset)), 0)
    original, masked, reconstructed = (stage.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4) for stage in shown)
    kept = ((original - reconstructed).abs() < 2e-3).all(dim=-1)
    assert kept.sum(dim=(1, 2, 3)).tolist() == [4] * 6  # a quarter of 16 patches
    assert torch.allclose(masked[kept], original[kept], atol=2e-3)
    assert torch.allclose(masked[~kept], torch.tensor(0.5), atol=2e-3)  # the grey mean

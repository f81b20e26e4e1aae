"""The parent of every configuration class (strict, frozen, its docstrings shown in the schema), and how its
keys are typed."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from mpma.errors import UserError


class StrictConfig(BaseModel):
    """Unknown keys are refused, values are never coerced silently, instances do not change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


def dotted_keys(model: type[StrictConfig], prefix: str = "") -> list[str]:
    """Every dotted key of a configuration class, leaves only."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, StrictConfig):
            keys += dotted_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


def split_assignment(text: str, example: str) -> tuple[str, str]:
    """Key and value, as text, of one `--set a.b=c`. Raises `UserError` that shows `example`."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"--set {text}: key=value is expected", f"for example --set {example}")
    return key, value

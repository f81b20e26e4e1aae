"""Reports in the styles of the archives that people have: what the model reads of each.

Every text is invented; only the forms of the headings are those of the archives.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mpma.data.pairs import model_text
from mpma.data.sections import parse_sections


@dataclass(frozen=True)
class Style:
    """A report, and what is to be found in it."""

    name: str
    text: str
    findings: str
    impression: str
    names: str
    """The sections, in order."""


STYLES = [
    # Frames, capitals, indents of one blank: the usual form of a large hospital's archive.
    Style(
        "framed, all headings on lines of their own",
        "                                 FINAL REPORT\n"
        " EXAMINATION:  CHEST (PA AND LAT)\n"
        " \n"
        " INDICATION:  ___ year old woman with cough  // r/o pneumonia\n"
        " \n"
        " TECHNIQUE:  Chest PA and lateral\n"
        " \n"
        " COMPARISON:  Chest radiograph ___\n"
        " \n"
        " FINDINGS: \n"
        " \n"
        " The lungs are well inflated and clear.  The heart is not enlarged.\n"
        " \n"
        " IMPRESSION: \n"
        " \n"
        " No acute process.\n",
        "The lungs are well inflated and clear.  The heart is not enlarged.",
        "No acute process.",
        "final_report examination indication technique comparison findings impression",
    ),
    Style(
        "the impression says what it is compared with",
        "                                 FINAL REPORT\n"
        " AP CHEST, 4:12 A.M., ___\n"
        " \n"
        " HISTORY:  After surgery.\n"
        " \n"
        " IMPRESSION:  AP chest compared to ___ and ___:\n"
        " \n"
        " Drains are unchanged.  No pneumothorax.\n",
        "",
        "AP chest compared to ___ and ___:\n \n Drains are unchanged.  No pneumothorax.",
        "final_report body history impression",
    ),
    Style(
        "the findings stand under no heading, after the comparison",
        "                                 FINAL REPORT\n"
        " REASON FOR EXAMINATION:  Chest pain.\n"
        " \n"
        " COMPARISON:  None.\n"
        " \n"
        " PA and lateral views are provided.  Lungs are clear.\n"
        " \n"
        " Bones are intact.\n",
        "PA and lateral views are provided.  Lungs are clear.\n \n Bones are intact.",
        "",
        "final_report indication comparison body",
    ),
    Style(
        "the findings stand under no heading, before the impression",
        "                                 FINAL REPORT\n"
        " HISTORY:  Fever.\n"
        " \n"
        " COMPARISON:  ___.\n"
        " \n"
        " Two views show a new opacity at the right base.\n"
        " \n"
        " IMPRESSION:  Right basal opacity.\n",
        "Two views show a new opacity at the right base.",
        "Right basal opacity.",
        "final_report history comparison body impression",
    ),
    Style(
        "a wet read before the report",
        "WET READ: ___ 10:32 PM\n"
        "  No pneumothorax on this film.  Discussed with ___.\n"
        "______________________________________________________________________________\n"
        "                                 FINAL REPORT\n"
        " INDICATION:  Line placed.\n"
        " \n"
        " FINDINGS:  The line ends in the lower cava.\n"
        " \n"
        " IMPRESSION:  Line in place.\n",
        "The line ends in the lower cava.",
        "Line in place.",
        "wet_read final_report indication findings impression",
    ),
    Style(
        "a wet read whose version stands in its heading",
        "WET READ VERSION #1  ___ ___ 8:15 PM\n"
        "  Edema is worse.\n"
        "______________________________________________________________________________\n"
        "                                 FINAL REPORT\n"
        " COMPARISON:  ___.\n"
        " \n"
        " IMPRESSION:  Edema has increased.\n",
        "",
        "Edema has increased.",
        "wet_read final_report comparison impression",
    ),
    Style(
        "a preliminary impression before the findings",
        "                                 FINAL REPORT\n"
        " PROVISIONAL FINDINGS IMPRESSION (PFI):  ___ ___ 3:40 PM\n"
        "  No consolidation seen at first look.\n"
        " \n"
        " FINDINGS:  Lungs are clear.\n"
        " \n"
        " IMPRESSION:  Normal.\n",
        "Lungs are clear.",
        "Normal.",
        "final_report wet_read findings impression",
    ),
    Style(
        "PFI alone",
        "PFI:  Left effusion.\n FINDINGS:  There is a left effusion.\n CONCLUSION:  Effusion on the left.\n",
        "There is a left effusion.",
        "Effusion on the left.",
        "wet_read findings impression",
    ),
    Style(
        "recommendations and a notification after the impression",
        " FINDINGS:  A nodule of 8 mm is seen.\n"
        " \n"
        " IMPRESSION:  Nodule on the right.\n"
        " \n"
        " RECOMMENDATION(S):  CT within 3 months.\n"
        " \n"
        " NOTIFICATION:  The findings were told to Dr. ___ by Dr. ___ by telephone\n"
        " on ___ at 9:10 AM, 5 minutes after discovery of the findings.\n",
        "A nodule of 8 mm is seen.",
        "Nodule on the right.",
        "findings impression recommendation notification",
    ),
    Style(
        "impression and recommendation in one heading",
        "FINDINGS:  Nodule.\n IMPRESSION AND RECOMMENDATION(S):  Nodule; repeat.\n",
        "Nodule.",
        "Nodule; repeat.",
        "findings impression",
    ),
    Style(
        "an addendum in front, framed",
        "                                 ADDENDUM  The rib fracture was told to Dr. ___.\n"
        "______________________________________________________________________________\n"
        "                                 FINAL REPORT\n"
        " FINDINGS:  A rib is broken.\n"
        " \n"
        " IMPRESSION:  Rib fracture.\n",
        "A rib is broken.",
        "Rib fracture.",
        "addendum final_report findings impression",
    ),
    Style(
        "two addenda behind",
        "FINDINGS: Clear.\nIMPRESSION: Normal.\n\nADDENDUM #1: Left, not right.\n"
        "ADDENDUM 2\nOne more word.\n",
        "Clear.",
        "Normal.",
        "findings impression addendum addendum",
    ),
    Style(
        "numbered headings",
        "1. INDICATION: Cough.\n2. TECHNIQUE: AP.\n3. FINDINGS: Lungs are clear.\n4. IMPRESSION: Normal.\n",
        "Lungs are clear.",
        "Normal.",
        "indication technique findings impression",
    ),
    Style(
        "headings numbered with brackets and Roman numerals",
        "I. CLINICAL HISTORY: Fall.\nII) FINDINGS: Rib broken.\nIII. IMPRESSION: Fracture.",
        "Rib broken.",
        "Fracture.",
        "history findings impression",
    ),
    Style(
        "a numbered impression keeps its numbers",
        "FINDINGS: Effusion and edema.\n\nIMPRESSION:\n\n1. Effusion.\n2. Edema.\n3.  Impression of the "
        "catheter unchanged.",
        "Effusion and edema.",
        "1. Effusion.\n2. Edema.\n3.  Impression of the catheter unchanged.",
        "findings impression",
    ),
    Style(
        "numbered statements that begin with a section's name",
        "IMPRESSION:\n1. Comparison with the film of yesterday shows no change.\n2. Technique is limited.",
        "",
        "1. Comparison with the film of yesterday shows no change.\n2. Technique is limited.",
        "impression",
    ),
    Style(
        "reason for exam, several forms",
        "REASON FOR EXAM: Cough.\nREASON FOR STUDY: Fever.\nREASON FOR THIS EXAMINATION:\n  pain\n"
        "FINDINGS: Clear.",
        "Clear.",
        "",
        "indication indication indication findings",
    ),
    Style(
        "an old form with a medical condition and a long line of underscores",
        "___ 9:04 AM\n CHEST (PORTABLE AP)\n Reason: r/o effusion\n"
        "______________________________________________________________________________\n"
        " UNDERLYING MEDICAL CONDITION:\n  ___ year old man with pain\n REASON FOR THIS EXAMINATION:\n"
        "  r/o effusion\n"
        "______________________________________________________________________________\n"
        "                                 FINAL REPORT\n"
        " PORTABLE CHEST:  The heart is large.\n\n IMPRESSION:  Large heart.\n",
        "The heart is large.",
        "Large heart.",
        "body history indication final_report findings impression",
    ),
    Style(
        "a technique and a title of the study in its heading",
        "EXAM: Chest radiograph\nTYPE OF EXAMINATION:  Portable AP.\nTECHNIQUE: AP.\nFINDINGS: Clear.\n",
        "Clear.",
        "",
        "examination examination technique findings",
    ),
    Style(
        "findings in two parts of one report",
        "CHEST, PA AND LATERAL:\n Lungs are clear.\n\n RIGHT SHOULDER, TWO VIEWS:\n No fracture.\n\n"
        " IMPRESSION:  Normal.\n",
        "Lungs are clear.\nNo fracture.",
        "Normal.",
        "findings findings impression",
    ),
    Style(
        "missing headings but the last",
        "Lungs are clear and the heart is normal.\n\nIMPRESSION: Normal.\n",
        "Lungs are clear and the heart is normal.",
        "Normal.",
        "body impression",
    ),
    Style(
        "headings in mixed case with a dash",
        "Indication \N{EN DASH} cough\nFINDINGS \N{EN DASH} Clear lungs.\nIMPRESSION - Normal.",
        "Clear lungs.",
        "Normal.",
        "body findings impression",
    ),
    Style(
        "flattened to one line, with numbers",
        "EXAM: Chest. 1. FINDINGS: Lungs clear. 2. IMPRESSION: Normal.",
        "Lungs clear.",
        "Normal.",
        "examination findings impression",
    ),
    Style(
        "nothing described",
        "                                 FINAL REPORT\n INDICATION:  Cough.\n",
        "",
        "",
        "final_report indication",
    ),
    # A narrative frame with a summary code, as another hospital's archive gives it.
    Style(
        "a narrative that ends in a summary code",
        "NARRATIVE:\nChest, one view: 3/4/2012\n\nCLINICAL HISTORY: 50 years of age, Male, cough.\n\n"
        "COMPARISON: 1/2/2012.\n\nFINDINGS: The line is unchanged. Edema.\n\n"
        "IMPRESSION:\n\n1. Unchanged line.\n2. Edema.\n\nEND OF IMPRESSION:\n\n"
        "SUMMARY: 2-ABNORMAL, PREVIOUSLY REPORTED\n\n"
        "I have personally reviewed the images for this examination and agree with the report.",
        "The line is unchanged. Edema.",
        "1. Unchanged line.\n2. Edema.",
        "narrative body history comparison findings impression end_of_impression summary",
    ),
    Style(
        "a summary that says what is seen, where there is no impression",
        "HISTORY: Cough.\n\nCOMPARISON: None.\n\nSUMMARY: Clear lungs and a normal heart.",
        "",
        "Clear lungs and a normal heart.",
        "history comparison summary",
    ),
    Style(
        "a summary that is a code, where there is no impression",
        "FINDINGS: Clear lungs.\nSUMMARY:4 POSSIBLE SIGNIFICANT ABNORMALITY/CHANGE, MAY NEED ACTION",
        "Clear lungs.",
        "",
        "findings summary",
    ),
    Style(
        "a narrative in which nothing is headed but the impression",
        "NARRATIVE:\nRadiograph of the chest. Lungs are clear.\n\nIMPRESSION: Normal.",
        "Radiograph of the chest. Lungs are clear.",
        "Normal.",
        "narrative body impression",
    ),
    Style(
        "a narrative, and no impression",
        "NARRATIVE: Radiograph of the chest. Lungs are clear.\n\nACCESSION NUMBER: ___\n",
        "Radiograph of the chest. Lungs are clear.",
        "",
        "narrative body examination",
    ),
    Style(
        "a title with a date, and the impression alone",
        "NARRATIVE:\nCHEST TWO VIEWS: 3/4/2012\n\nCLINICAL HISTORY: Cough.\n\nCOMPARISON: ___\n\n"
        "IMPRESSION: Normal.",
        "",
        "Normal.",
        "narrative examination history comparison impression",
    ),
    Style(
        "a title in capitals right before the impression",
        "AP CHEST ON ___\n\nIMPRESSION: Edema has cleared.",
        "",
        "Edema has cleared.",
        "body impression",
    ),
    Style(
        "a sentence that ends in a number, before the impression",
        "FINDINGS: Nodule in segment 2. IMPRESSION: Nodule.",
        "Nodule in segment 2.",
        "Nodule.",
        "findings impression",
    ),
    Style(
        "a code with a decimal point, before capitalised findings",
        "Indication: Pain, 218.9. Findings: Clear. Impression: Normal.",
        "Clear.",
        "Normal.",
        "indication findings impression",
    ),
    Style(
        "comments on the procedure",
        "CLINICAL HISTORY: Tube.\nPROCEDURE COMMENTS: One view.\nFINDINGS: Tube in place.\nIMPRESSION: Good.",
        "Tube in place.",
        "Good.",
        "history technique findings impression",
    ),
    # Other languages: what is not known as a heading stays in the text that the model reads.
    Style(
        "Spanish, without headings or accents",
        "silueta cardiaca dentro de la normalidad . no se observan infiltrados .",
        "",
        "",
        "body",
    ),
    Style(
        "Spanish headings",
        "HALLAZGOS: Sin infiltrados ni derrame pleural.\nIMPRESIÓN: Tórax normal; niño de 5 años.",
        "",
        "",
        "body",
    ),
    Style(
        "German headings",
        "Klinische Angaben: Husten.\nBefund: Kein Erguß, Herz nicht vergrößert.\nBeurteilung: Unauffällig.",
        "",
        "",
        "body",
    ),
    Style(
        "French headings, of which some are English words too",
        "INDICATION : Toux.\nTECHNIQUE : Face.\nRÉSULTATS : Pas d'épanchement.\nCONCLUSION : Normale.",
        "Pas d'épanchement.",
        "Normale.",
        "indication technique findings impression",
    ),
    Style("Chinese", "双肺纹理清晰。心影不大。\n印象:未见异常。", "", "", "body"),
    Style("Arabic", "الرئتان صافيتان. حجم القلب طبيعي.", "", "", "body"),
    Style("Greek", "Οι πνεύμονες είναι καθαροί.\nΣΥΜΠΕΡΑΣΜΑ: Φυσιολογική.", "", "", "body"),
    Style("Cyrillic", "ОПИСАНИЕ: Лёгкие чистые.\nЗАКЛЮЧЕНИЕ: Норма.", "", "", "body"),
]


@pytest.mark.parametrize("style", STYLES, ids=[style.name for style in STYLES])
@pytest.mark.parametrize("lines", ["\n", "\r\n"], ids=["unix", "windows"])
def test_each_style_gives_its_findings_and_impression(style: Style, lines: str) -> None:
    text = style.text.replace("\n", lines)
    parsed = parse_sections(text)
    assert parsed.findings.replace("\r\n", "\n") == style.findings
    assert parsed.impression.replace("\r\n", "\n") == style.impression
    assert " ".join(section.name for section in parsed.sections) == style.names


@pytest.mark.parametrize("style", [style for style in STYLES if style.names == "body"], ids=lambda s: s.name)
def test_a_report_without_a_known_heading_is_read_whole(style: Style) -> None:
    parsed = parse_sections(style.text)
    assert model_text(style.text, parsed.findings, parsed.impression) == style.text


@pytest.mark.parametrize(
    "text",
    [
        "The 2. findings of the day are unchanged.",
        "1. Findings are unchanged.\n2. Impressions of ribs.",
        "In summary: nothing to add to the narrative: all is well.",
        "No. 1. Findings",
        "A summary\nof what is seen.",
        "Results were told to the ward at 10:30.",
        "The results: none.",
        "Reason: unknown",
    ],
)
def test_prose_and_numbered_statements_are_no_headings(text: str) -> None:
    assert not parse_sections(text).has_headings

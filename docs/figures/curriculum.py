"""The figure of the curriculum (Fig. 4), from the trainer's configuration of it."""

from pathlib import Path

from training.config.layers import load_config

from .drawing import Sheet


CONFIG = Path(__file__).resolve().parents[2] / "training/configs/mardini_l_t.yaml"
_PARTS = {"planner": "planner", "transformer": "model", "joint": "new"}


def curriculum(scheme: str) -> str:
    """Draw a bar for each stage: which share of frames is given."""
    stages = load_config(CONFIG).stages
    sheet = Sheet(980, 108 + 40 * len(stages), "The curriculum: nine stages, ever fewer given frames", scheme)
    left, right, top = 430, 750, 70
    heads = {20: "stage", 222: "frames", 282: "fps", 322: "size", right + 20: "clips seen", right + 104: "attention"}
    for x, name in heads.items():
        sheet.text(x, 34, name, 13, "soft")
    sheet.text((left + right) / 2, 34, "share of frames that is given", 13, "soft", "middle")
    for share in (0, 25, 50, 75, 100):
        x = left + (right - left) * share / 100
        sheet.line([(x, 58), (x, top + 40 * len(stages) - 14)], "faint", 1)
        sheet.text(x, 52, f"{share}%", 11, "soft", "middle")
    for number, stage in enumerate(stages):
        y, colour = top + 40 * number, _PARTS[stage.trains]
        low, high = stage.reference_ratio
        sheet.text(20, y + 16, stage.name, 13, bold=True)
        size = stage.size or 0
        for x, value in ((222, stage.num_frames), (282, f"{stage.fps:g}"), (322, f"{size}x{size}")):
            sheet.text(x, y + 16, str(value), 13)
        x, width = left + (right - left) * low, (right - left) * (high - low)
        sheet.box(x, y, width, 22, colour, f"{colour}-fill")
        sheet.text(x + width / 2, y + 15, f"{100 * low:.0f} to {100 * high:.0f}%", 11, align="middle")
        sheet.text(right + 20, y + 16, f"{stage.clips / 1e6:g} M", 13)
        attention = "" if stage.trains == "planner" else stage.temporal_attention
        sheet.text(right + 104, y + 16, attention, 13, "soft")
    y = top + 40 * len(stages) + 20
    for x, part, text in (
        (20, "planner", "planner alone: reconstruction"),
        (270, "transformer", "transformer alone, no planning signals"),
        (580, "joint", "both: diffusion, 1 in 10 without planning signals"),
    ):
        sheet.box(x, y - 12, 16, 14, _PARTS[part], f"{_PARTS[part]}-fill", radius=3)
        sheet.text(x + 24, y, text, 13, "soft")
    return sheet.svg()

"""Figures of the models: the architecture, identity attention, and what a window computes once."""

from diffusers_mardini.masking import interpolation_indices
from diffusers_mardini.presets import load_preset

from .drawing import Sheet


FRAMES = 9
PLANNER_BLOCK = ("spatial attention", "identity attention, all frames", "MLP")
TRANSFORMER_BLOCK = ("spatial attention", "identity attention", "cross-attention", "MLP")


def architecture(scheme: str) -> str:
    """Draw both models, what goes into them, and what runs how often."""
    sheet = Sheet(980, 500, "The planner runs once per window, the transformer at every step", scheme)
    given = interpolation_indices(FRAMES)
    kinds = ["given" if i in given else "masked" for i in range(FRAMES)]

    # 1. The planner's way, above
    small, large = load_preset("mardini-s-st"), load_preset("mardini-l-t")
    sheet.text(20, 34, "the window, made smaller", 13, "soft")
    sheet.strip(20, 50, kinds, ["[M]" if kind == "masked" else "" for kind in kinds], 22, 25)
    sheet.text(20, 96, f"a {_ordinal(large['planner_downscale'])} of the side, through the VAE;", 13, "soft")
    sheet.text(20, 112, "masked frames are a learned [MASK]", 13, "soft")
    sheet.line([(250, 62), (312, 62)], arrow=True)
    sheet.box(322, 24, 300, 172, "planner", "planner-fill", radius=8, weight=2)
    sheet.text(338, 50, "Planner: heavy, once per window", 15, bold=True)
    sheet.text(338, 69, f"Table 1: {_billions(small, large)} parameters", 13, "soft")
    _block(sheet, 338, 82, 190, PLANNER_BLOCK, "planner")
    sheet.text(540, 134, f"x {small['planner']['num_layers']} or {large['planner']['num_layers']}", 13)
    sheet.line([(622, 110), (682, 110)], "planner", arrow=True)
    sheet.text(694, 84, "planning signals", 14, bold=True)
    for i in range(FRAMES):
        for row in range(2):
            for column in range(2):
                sheet.box(
                    694 + 29 * i + 11 * column, 96 + 11 * row, 10, 10, "planner", "planner-fill", radius=1, weight=1
                )
    sheet.text(694, 140, "a grid of tokens for each frame", 13, "soft")

    # 2. The transformer's way, below
    sheet.text(20, 270, "the window at full size", 13, "soft")
    noised = ["new" if kind == "masked" else kind for kind in kinds]
    sheet.strip(20, 284, noised, ["~" if kind == "new" else "" for kind in noised], 22, 25)
    sheet.text(20, 330, "given frames through the VAE, clean;", 13, "soft")
    sheet.text(20, 346, "masked frames are noise (~) at first", 13, "soft")
    sheet.line([(250, 296), (312, 296)], arrow=True)
    sheet.box(322, 258, 300, 202, "model", "model-fill", radius=8, weight=2)
    sheet.text(338, 284, "Transformer: light, at every step", 15, bold=True)
    sheet.text(338, 303, f"Table 1: {large['paper_parameters']['transformer'] / 1e6:.0f} M parameters", 13, "soft")
    _block(sheet, 338, 316, 190, TRANSFORMER_BLOCK, "model")
    sheet.text(540, 376, f"x {large['transformer']['num_layers']}", 13)

    # 3. Planning signals into the cross-attention; the loop of the sampler; the result
    sheet.line([(824, 150), (824, 226), (648, 226), (648, 400), (532, 400)], "planner", arrow=True, weight=2)
    sheet.text(812, 216, "each frame reads its own signals", 13, "soft", "right")
    sheet.line([(622, 300), (694, 300)], arrow=True)
    sheet.text(700, 290, "velocity", 14, bold=True)
    sheet.text(700, 307, "of the masked frames", 13, "soft")
    sheet.line([(770, 316), (770, 348)], arrow=True)
    sheet.box(694, 354, 250, 44, "line", "masked-fill")
    sheet.text(708, 372, "Scheduler (DDIM, 25 steps)", 13, bold=True)
    sheet.text(708, 389, "takes a little noise away", 13, "soft")
    sheet.line([(770, 398), (770, 484), (131, 484), (131, 354)], arrow=True, weight=2)
    sheet.text(430, 478, "the masked frames, less noisy: again, 25 times", 13, "soft", "middle")
    sheet.line([(944, 376), (962, 376), (962, 424)], arrow=True)
    sheet.text(972, 444, "at the end: the VAE decodes", 13, "soft", "right")
    sheet.strip(800, 452, noised, [""] * FRAMES, 16, 19)
    return sheet.svg()


def identity_attention(scheme: str) -> str:
    """Draw which frames attend to which: Fig. 3, plain attention, and the two groupings of tokens."""
    sheet = Sheet(980, 330, "Identity attention: frames that are given attend to themselves alone", scheme)
    given = interpolation_indices(5)
    for x, title, identity in ((20, "identity attention (Fig. 3)", True), (340, "plain attention", False)):
        sheet.text(x, 26, title, 15, bold=True)
        sheet.text(x + 152, 50, "keys and values", 13, "soft", "middle")
        for i in range(5):
            kind = "given" if i in given else "masked"
            sheet.frame(x + 70 + 34 * i, 60, 28, kind, str(i))
            sheet.frame(x + 30, 98 + 34 * i, 28, kind, str(i))
            for j in range(5):
                attends = i == j if identity and i in given else True
                colour = ("given" if i in given else "new") if attends else "faint"
                sheet.box(
                    x + 70 + 34 * j, 98 + 34 * i, 28, 28, colour, f"{colour}-fill" if attends else "none", radius=3
                )
                if attends:
                    sheet.dot(x + 84 + 34 * j, 112 + 34 * i, 4, colour)
        sheet.text(x, 290, "rows: queries; frames 0 and 4 are given", 13, "soft")
    sheet.text(20, 310, "one key: its softmax is 1, the output its own value", 13, "given")
    sheet.text(340, 310, "given frames would take up noise", 13, "soft")

    # One query, and its keys
    x = 660
    sheet.text(x, 26, "the keys of a masked frame", 15, bold=True)
    for y, name, note, everything in (
        (66, "spatiotemporal", "all tokens of all frames", True),
        (186, "temporal", "one place in all frames", False),
    ):
        sheet.text(x, y - 8, name, 13, bold=True, mono=True)
        sheet.text(x + 128, y - 8, note, 13, "soft")
        for i in range(5):
            for row in range(3):
                for column in range(3):
                    query, here = (i, row, column) == (2, 1, 1), (row, column) == (1, 1)
                    fill = "new" if query else "new-fill" if everything or here else "none"
                    sheet.box(
                        x + 62 * i + 17 * column, y + 17 * row, 15, 15, "given" if i in given else "line", fill, 2
                    )
        sheet.text(x + 62 * 2 + 24, y + 68, "query", 13, "new", "middle")
    sheet.text(x, 290, "planner: the first; transformer: see Table 1", 13, "soft")
    sheet.text(x, 310, "the weights are the same for both", 13, "soft")
    return sheet.svg()


def once_per_window(scheme: str) -> str:
    """Draw a table of parts and steps: what is computed before the first step, and what at each."""
    sheet = Sheet(980, 330, "What is computed once per window, and what at every step", scheme)
    rows = (
        ("VAE encodes the given frames", "once", "given", "both sizes"),
        ("planner: planning signals", "once", "planner", "the paper (Sec. 2.1)"),
        ("transformer on given frames: keys and values", "once", "given", "ours: the window state"),
        ("keys and values of planning signals", "once", "planner", "ours: the window state"),
        ("transformer on masked frames", "steps", "model", "their tokens alone"),
        ("scheduler", "steps", "masked", ""),
        ("VAE decodes all frames", "end", "given", ""),
    )
    left, columns = 370, ("before", "step 1", "2", "3", "…", "24", "25", "after")
    for number, label in enumerate(columns):
        sheet.text(left + 24 + 48 * number, 34, label, 13, "soft", "middle")
    for number, (name, when, colour, note) in enumerate(rows):
        y = 66 + 36 * number
        sheet.line([(20, y + 14), (960, y + 14)], "faint", 1)
        sheet.text(20, y + 4, name, 14)
        places = {"once": [0], "steps": range(1, 7), "end": [7]}[when]
        for place in places:
            if columns[place] == "…":
                sheet.text(left + 24 + 48 * place, y + 3, "…", 14, "soft", "middle")
            else:
                sheet.dot(left + 24 + 48 * place, y - 1, 7, colour)
        sheet.text(left + 408, y + 4, note, 13, "soft")
    note = "With guidance above 1 there are two branches, with and without planning signals; each has its own window state."
    sheet.text(20, 320, note, 13, "soft")
    return sheet.svg()


def _block(sheet: Sheet, x: float, y: float, width: float, layers: tuple[str, ...], colour: str) -> None:
    for number, layer in enumerate(layers):
        fill = "planner-fill" if layer == "cross-attention" else "paper"
        sheet.box(x, y + 34 * number, width, 28, colour, fill)
        sheet.text(x + width / 2, y + 34 * number + 18, layer, 12, align="middle")


def _billions(*presets: dict) -> str:
    counts = [f"{preset['paper_parameters']['planner'] / 1e9:g}" for preset in presets]
    return f"{' to '.join(counts)} B"


def _ordinal(number: int) -> str:
    return {2: "half", 4: "quarter"}[number]

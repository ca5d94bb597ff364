"""How the app looks: its own theme, in light and dark, down to the width of a phone."""

import gradio as gr

# Fonts of the visitor's own machine, for the page asks no other host for anything.
SANS = ["ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "monospace"]
INK = gr.themes.Color(
    "#f5f6fb", "#e7e9f5", "#cdd2ea", "#a8b0d8", "#7f89c0", "#5f6aa9",
    "#4c5590", "#3e4674", "#343a5f", "#2b304e", "#1b1e33", name="ink",
)  # fmt: skip

CSS = """
.gradio-container { width: 100%; max-width: min(1180px, 100vw) !important; margin: 0 auto; }
.gradio-container main, .gradio-container .tabs, .gradio-container .tab-wrapper { min-width: 0;
  max-width: 100%; }
.masthead h1 { font-size: 1.7rem; letter-spacing: -.02em; margin: .4rem 0 0; }
.masthead p { color: var(--body-text-color-subdued); margin: .1rem 0 .6rem; }
.figure { border-bottom: 1px dotted var(--body-text-color-subdued); cursor: help;
  font-variant-numeric: tabular-nums; }
.figure:focus { outline: 2px solid var(--color-accent); outline-offset: 2px; }
.empty { color: var(--body-text-color-subdued); padding: 1.2rem; text-align: center;
  border: 1px dashed var(--border-color-primary); border-radius: var(--radius-lg); }
table.report { border-collapse: collapse; width: 100%; }
table.report, table.report :is(thead, tbody, tr) { border: none !important; }
.dark .tabs button.selected { color: var(--primary-300) !important; }
table.report th, table.report td { padding: .35rem .6rem; text-align: left;
  border: none !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.seen { display: flex; gap: 1.2rem; flex-wrap: wrap; }
.seen div { flex: 1 1 14rem; }
.scroll { overflow-x: auto; }
footer > div { display: none; } /* dots between links, of which there is one */
#nearby .caption-label { white-space: normal; overflow: visible; }
@media (max-width: 640px) {
  .masthead h1 { font-size: 1.35rem; }
  .gradio-container { padding: .4rem !important; }
  #outcome { order: -1; } /* what was drawn comes before what is asked */
  #nearby .grid-container { --grid-cols: 2 !important; }
  #nearby, #nearby .grid-wrap { height: auto !important; }
  table.report th, table.report td { padding: .25rem .3rem; font-size: .85rem; }
}
@media (prefers-reduced-motion: reduce) { * { animation: none !important; } }
"""


def build_theme() -> gr.themes.Base:
    """The app's theme."""
    return gr.themes.Base(
        primary_hue=INK,
        secondary_hue=gr.themes.colors.amber,
        neutral_hue=gr.themes.colors.stone,
        font=SANS,
        font_mono=MONO,
        radius_size=gr.themes.sizes.radius_md,
    ).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_500",
        button_primary_text_color="white",
        block_label_text_size="*text_sm",
        block_border_width="1px",
        block_shadow="none",
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
    )

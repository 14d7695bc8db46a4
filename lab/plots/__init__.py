"""Numbers in, pictures out: the only room that draws.

Each `draw_*` takes numbers and returns a picture for `figures.save_png` and `figures.to_image`, each `animate_*` a list of
frames, uint8 [height, width, 3], for `figures.save_gif`. What cannot be drawn is a `figures.DrawingError`. What every run
draws is a `canvas.Page`, made with Pillow; the reports on many runs are figures of matplotlib (`pages`).
"""

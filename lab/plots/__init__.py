"""Numbers in, pictures out: the only package that imports matplotlib.

Each `draw_*` takes numbers and returns a Figure, each `animate_*` a list of frames, uint8 [height, width, 3].
"""

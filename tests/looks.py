"What a reader must be able to tell apart in any figure."


def check_looks(figure):
    "No two named lines of one plot share colour, dashes and marker; no legend lies over axes."
    figure.canvas.draw()
    for axis in figure.axes:
        lines = [line for line in axis.lines if not line.get_label().startswith("_")]
        looks = [(line.get_color(), str(line.get_linestyle()), line.get_marker()) for line in lines]
        assert len(set(looks)) == len(looks), [line.get_label() for line in lines]
        if axis.get_legend():
            box = axis.get_legend().get_window_extent()
            assert not any(box.overlaps(other.get_window_extent()) for other in figure.axes)

"Frames of RHD's twin are those that the shipped networks were trained and tested on."

from pathlib import Path

import numpy as np
import pytest

from handlab.data.sample import Sample
from handlab.hand.camera import project
from handlab.sim.rhd import SimRHD, rhd_frame

KNOWN = Path(__file__).with_name("known_frames.npz")  # windows of 64 px of frames without JPEG
SHIPPED = sorted((Path(__file__).parents[1] / "runs/shipped/frames").glob("sim-rhd-*.npz"))


def _as_right(
    sample: Sample,
    dims: int,  # 3: camera frame (mm); 2: image (px)
) -> np.ndarray:  # (21, dims), as shipped results have them: a left hand is mirrored
    left = sample.side == "left"
    if dims == 3:
        return sample.joints * [-1 if left else 1, 1, 1]
    uv = project(sample.joints, sample.K)
    return np.where([left, False], [sample.shape[1] - 1, 0] - uv, uv)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_labels_are_those_of_shipped_results(path):
    with np.load(path) as shipped:
        reader = SimRHD("evaluation", len(shipped["true"]), seed=0)
        for index in (0, 1, 80, 161, 240):
            sample = reader[index]
            assert shipped["name"][index] == sample.name
            np.testing.assert_allclose(
                _as_right(sample, shipped["true"].shape[-1]), shipped["true"][index], atol=1e-3
            )
            assert (sample.visible == shipped["visible"][index]).all()


def test_pictures_depth_and_parts_are_known():
    "Other processors may round some grey levels and outlines differently; nothing more."
    with np.load(KNOWN) as known:
        for row, number in enumerate(known["number"].tolist()):
            (y, x), (image, depth, parts, labels) = known["corner"][row], rhd_frame(0, "evaluation", number)
            window = np.s_[y : y + 64, x : x + 64]
            off = np.abs(image[window].astype(int) - known["image"][row])
            assert (off > 1).mean() < 1e-3 and (off > 0).mean() < 1e-2, number
            assert (parts[window] != known["parts"][row]).mean() < 1e-3
            assert (depth[window] != known["depth"][row]).mean() < 1e-2
            for name in ("K", "xyz", "uv_vis"):  # px, and metres
                np.testing.assert_allclose(labels[name], known[name][row], atol=1e-4)

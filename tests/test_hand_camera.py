"""Projection, crops, affine maps, viewpoint, clouds and heat maps against plain loops, OpenCV and SciPy."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial.transform import Rotation

from handlab.core import HandlabError
from handlab.hand.camera import (
    Box,
    crop_intrinsics,
    crop_mask,
    crop_matrix,
    crop_tips,
    crop_zb,
    depth_to_cloud,
    heatmap_argmax,
    heatmaps,
    image_uv,
    invert_affine,
    mirror_intrinsics,
    mirror_uv,
    pixel_rays,
    project,
    rotate,
    rotate_back,
    sample_clouds,
    sample_points,
    similarity_matrix,
    transform_uv,
    unproject,
    viewpoint_rotation,
    warp,
)
from handlab.hand.skeleton import example_hand, mirror_joints

examples = settings(deadline=None, max_examples=40)
number = st.floats(-300, 300, allow_nan=False)
points = arrays.arrays(np.float64, (21, 3), elements=number, fill=st.nothing()).map(
    lambda xyz: xyz + (0, 0, 700)
)
cameras = st.builds(
    lambda fx, fy, cx, cy: np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]),
    st.floats(150, 900),
    st.floats(150, 900),
    st.floats(100, 400),
    st.floats(80, 300),
)
boxes = st.builds(Box, st.floats(-50, 400), st.floats(-50, 400), st.floats(20, 500))
K = np.array([[280.0, 0, 160], [0, 290, 158], [0, 0, 1]])
RHD_K = np.array([[300.0, 0, 160], [0, 300, 160], [0, 0, 1]])


@examples
@given(points, cameras)
def test_project_and_back(xyz, K):
    uv = project(xyz, K)
    np.testing.assert_allclose(
        uv, cv2.projectPoints(xyz, np.zeros(3), np.zeros(3), K, None)[0][:, 0], atol=1e-6
    )
    np.testing.assert_allclose(unproject(uv, xyz[:, 2], K), xyz, atol=1e-6)
    rays = pixel_rays(uv, K)
    np.testing.assert_allclose(np.cross(rays, xyz), 0, atol=1e-6)
    tensor = project(torch.from_numpy(xyz)[None].expand(2, -1, -1), torch.from_numpy(np.stack([K, K])))
    np.testing.assert_allclose(tensor[1].numpy(), uv, atol=1e-9)


def test_each_sample_has_its_own_camera():
    xyz = np.random.default_rng(0).normal((0, 0, 500), 60, (4, 21, 3))
    Ks = np.stack([K * (1, 1 + 0.1 * i, 1) + [[20 * i, 0, 3 * i], [0, 0, -i], [0, 0, 0]] for i in range(4)])
    Ks[:, 0, 1] = 0
    Ks[1, 0, 1] = 7  # one camera has skewed pixels
    one_by_one = np.stack([project(joints, camera) for joints, camera in zip(xyz, Ks)])
    np.testing.assert_allclose(project(xyz, Ks), one_by_one)
    np.testing.assert_allclose(unproject(one_by_one, xyz[..., 2], Ks), xyz, atol=1e-9)
    homogeneous = np.einsum("bij,bnj->bni", Ks, xyz)
    np.testing.assert_allclose(one_by_one, homogeneous[..., :2] / homogeneous[..., 2:])


def test_points_behind_the_camera_have_no_pixel():
    uv = project(np.array([[0, 0, 500.0], [10, 10, 0], [10, 10, -300]]), K)
    assert np.isfinite(uv[0]).all() and np.isnan(uv[1:]).all()
    leaf = torch.tensor([[5.0, 5, 500], [1, 1, 0]], requires_grad=True)
    project(leaf, K)[0].sum().backward()
    assert leaf.grad.isfinite().all()


def plain_zb(uv, visible, height, width):
    "Zimmermann and Brox's rule in plain loops"
    largest = None
    for (u, v), seen in zip(uv, visible):
        if seen:
            u, v = min(max(u, 0), width), min(max(v, 0), height)
            largest = max(abs(u - uv[9][0]), abs(v - uv[9][1]), largest or 0)
    return 200 if largest is None else min(max(2 * largest, 50), 500)


@examples
@given(
    arrays.arrays(np.float64, (21, 2), elements=st.floats(-100, 420), fill=st.nothing()),
    arrays.arrays(bool, 21, fill=st.nothing()),
)
def test_crop_zb(uv, visible):
    box = crop_zb(uv, visible, (240, 320))
    assert (box.u, box.v) == tuple(uv[9])
    assert box.size == pytest.approx(plain_zb(uv, visible, 240, 320))
    inside = visible & (uv >= 0).all(1) & (uv[:, 0] <= 320) & (uv[:, 1] <= 240)
    if box.size < 500:
        assert (np.abs(uv[inside] - uv[9]) <= box.size / 2 + 1e-9).all()


def test_crop_zb_stops_at_the_border_of_a_wide_image():
    uv, visible = np.full((21, 2), 200.0), np.zeros(21, bool)
    uv[4], visible[4] = (400, 200), True
    assert crop_zb(uv, visible, (240, 320)).size == 240  # u reaches 320 of 400
    uv[4] = 200, 400
    assert crop_zb(uv, visible, (240, 320)).size == 80  # v reaches 240
    uv[4] = -50, 200
    assert crop_zb(uv, visible, (240, 320)).size == 400  # u reaches 0


def test_crop_zb_without_a_root():
    uv = np.full((21, 2), 50.0)
    uv[9] = np.nan
    with pytest.raises(HandlabError, match="middle MCP"):
        crop_zb(uv, np.ones(21, bool), (320, 320))


@examples
@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 40), st.integers(1, 40), st.floats(1, 2))
def test_crop_mask(left, top, wide, high, margin):
    mask = np.zeros((100, 100), bool)
    mask[top : top + high, left : left + wide] = True
    box = crop_mask(mask, margin)
    assert box == pytest.approx((left - 0.5 + wide / 2, top - 0.5 + high / 2, margin * max(wide, high)))
    with pytest.raises(HandlabError, match="empty"):
        crop_mask(np.zeros((4, 4), bool))


@examples
@given(boxes, st.integers(8, 300))
def test_crop_matrix(box, size):
    matrix = crop_matrix(box, size)
    corners = np.array(
        [
            [box.u - box.size / 2, box.v - box.size / 2],
            [box.u + box.size / 2, box.v + box.size / 2],
            [box.u, box.v],
        ]
    )
    np.testing.assert_allclose(
        transform_uv(matrix, corners),
        [[-0.5, -0.5], [size - 0.5, size - 0.5], [(size - 1) / 2] * 2],
        atol=1e-6,
    )
    np.testing.assert_allclose(invert_affine(matrix), np.linalg.inv(matrix), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(image_uv(transform_uv(matrix, corners), box, size), corners, atol=1e-6)


@examples
@given(st.floats(-4, 4), st.floats(0.3, 3), st.floats(-40, 40), st.floats(-40, 40), st.integers(10, 256))
def test_similarity_matrix_is_opencvs(angle, scale, du, dv, size):
    matrix = similarity_matrix(angle, scale, np.array([du, dv]), (size - 1) / 2)
    theirs = cv2.getRotationMatrix2D(
        ((size - 1) / 2, (size - 1) / 2), -np.degrees(angle), scale
    )  # theirs turns the other way
    np.testing.assert_allclose(matrix[:2], theirs + [[0, 0, du], [0, 0, dv]], atol=1e-6)
    np.testing.assert_allclose(invert_affine(matrix) @ matrix, np.eye(3), atol=1e-6)


@examples
@given(points, cameras, boxes)
def test_crop_intrinsics(xyz, K, box):
    np.testing.assert_allclose(
        project(xyz, crop_intrinsics(K, box, 128)),
        transform_uv(crop_matrix(box, 128), project(xyz, K)),
        atol=1e-5,
    )


def test_batches_of_boxes_on_tensors():
    generator = np.random.default_rng(1)
    box, uv, xyz = (
        generator.uniform(50, 200, (3, 3)),
        generator.uniform(0, 320, (3, 21, 2)),
        generator.normal((0, 0, 500), 50, (3, 21, 3)),
    )
    Ks = np.stack([K, RHD_K, K + 0.5 * np.eye(3) * (1, 1, 0)])
    ours = transform_uv(crop_matrix(torch.from_numpy(box), 64), torch.from_numpy(uv)).numpy()
    theirs = np.stack([transform_uv(crop_matrix(Box(*b), 64), points) for b, points in zip(box, uv)])
    np.testing.assert_allclose(ours, theirs)
    np.testing.assert_allclose(
        crop_intrinsics(torch.from_numpy(Ks), torch.from_numpy(box), 64).numpy(),
        np.stack([crop_intrinsics(k, b, 64) for k, b in zip(Ks, box)]),
    )
    np.testing.assert_allclose(
        viewpoint_rotation(torch.from_numpy(box), torch.from_numpy(Ks)).numpy(),
        np.stack([viewpoint_rotation(b, k) for k, b in zip(Ks, box)]),
    )
    turns = viewpoint_rotation(xyz[:, 9])
    np.testing.assert_allclose(rotate(xyz, turns), np.einsum("bij,bnj->bni", turns, xyz), atol=1e-9)
    assert crop_matrix(torch.tensor(box, dtype=torch.float32), 64).dtype == torch.float32


@pytest.mark.parametrize("mode,flag", [("bilinear", cv2.INTER_LINEAR), ("nearest", cv2.INTER_NEAREST)])
def test_warp_draws_what_opencv_draws(mode, flag):
    image = cv2.GaussianBlur(np.random.default_rng(0).random((90, 120)), (0, 0), 4)
    matrix = similarity_matrix(0.4, 1.3, np.array([3.0, -2.0]), 31.5) @ crop_matrix(Box(55, 47, 60), 64)
    ours = warp(torch.from_numpy(image)[None, None], torch.from_numpy(matrix), 64, mode)[0, 0].numpy()
    theirs = cv2.warpAffine(image, matrix[:2], (64, 64), flags=flag)
    if mode == "bilinear":
        assert np.abs(ours - theirs)[3:-3, 3:-3].max() < 0.01  # OpenCV rounds its weights to 1/32 px
    else:
        assert (ours != theirs).mean() < 0.05


def test_warp_takes_whole_pixels_exactly():
    image = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    matrix = crop_matrix(
        Box(9.5, 8.5, 12), 12
    )  # one crop pixel an image pixel: columns 4 to 15, rows 3 to 14
    for padding in ("zeros", "border"):
        torch.testing.assert_close(
            warp(image, torch.from_numpy(matrix), 12, padding=padding),
            image[:, :, 3:15, 4:16],
            atol=1e-5,
            rtol=0,
        )
    far = warp(image, torch.from_numpy(crop_matrix(Box(-40, -40, 12), 12)), 12)
    assert far.abs().max() == 0


@examples
@given(points, cameras, st.integers(100, 640))
def test_mirrored_camera(xyz, K, width):
    np.testing.assert_allclose(
        project(mirror_joints(xyz), mirror_intrinsics(K, width)), mirror_uv(project(xyz, K), width), atol=1e-6
    )
    np.testing.assert_allclose(mirror_intrinsics(mirror_intrinsics(K, width), width), K)


def test_mirror_uv_is_the_flipped_image():
    image = np.random.default_rng(0).random((5, 8))
    for u in range(8):
        assert image[:, ::-1][2, int(mirror_uv(np.array([u, 2.0]), 8)[0])] == image[2, u]


def about(axis, angle):
    return Rotation.from_euler(axis, angle).as_matrix()


@examples
@given(st.floats(-1.2, 1.2), st.floats(-1.2, 1.2), points)
def test_viewpoint_rotation(x, y, xyz):
    ray = np.array([x, y, 1.0])
    turn = viewpoint_rotation(ray)
    np.testing.assert_allclose(turn @ ray, [0, 0, np.linalg.norm(ray)], atol=1e-9)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(turn) == pytest.approx(1)
    alpha_y = np.arctan2(x, 1)  # the supplement's equations, by SciPy's rotations
    e = about("y", -alpha_y) @ ray
    alpha_x = np.arctan2(e[1], e[2])
    np.testing.assert_allclose(turn, about("x", alpha_x) @ about("y", -alpha_y), atol=1e-9)
    np.testing.assert_allclose(
        viewpoint_rotation(ray, order="printed"), about("y", -alpha_y) @ about("x", alpha_x), atol=1e-9
    )
    np.testing.assert_allclose(rotate(xyz, turn), Rotation.from_matrix(turn).apply(xyz), atol=1e-6)
    np.testing.assert_allclose(rotate_back(rotate(xyz, turn), turn), xyz, atol=1e-6)


@examples
@given(boxes, cameras)
def test_viewpoint_rotation_of_a_box(box, K):
    turn = viewpoint_rotation(box, K)
    centre = unproject([[box.u, box.v]], [600.0], K)
    np.testing.assert_allclose(rotate(centre, turn)[0, :2], 0, atol=1e-6)
    shortest, _ = Rotation.align_vectors(
        [[0, 0, 1]], centre
    )  # the shortest such turn differs by a roll about the axis only
    roll = turn @ shortest.as_matrix().T
    np.testing.assert_allclose(roll[2], [0, 0, 1], atol=1e-5)


def test_printed_order_misses():
    ray = np.array([0.6, 0.4, 1])
    x, y, z = viewpoint_rotation(ray, order="printed") @ ray
    assert np.hypot(x, y) / z > 0.05
    with pytest.raises(HandlabError, match="order"):
        viewpoint_rotation(ray, order="any")


def plain_cloud(depth, mask, K, root, radius):
    cloud = []
    for v in range(depth.shape[0]):
        for u in range(depth.shape[1]):
            z = depth[v, u] * 1000
            if mask[v, u] and np.isfinite(z) and z > 0:
                point = np.array([(u - K[0, 2]) / K[0, 0] * z, (v - K[1, 2]) / K[1, 1] * z, z])
                if np.linalg.norm(point - root) < radius:
                    cloud.append(point)
    return np.array(cloud)


def test_depth_to_cloud():
    generator = np.random.default_rng(0)
    depth = generator.uniform(0.3, 0.7, (30, 40))
    depth[generator.random((30, 40)) < 0.2] = np.nan
    depth[3] = 0
    mask, camera, root = (
        generator.random((30, 40)) < 0.7,
        crop_intrinsics(K, (160, 160, 320), 40),
        np.array([20, -10, 480.0]),
    )
    expected = plain_cloud(depth, mask, camera, root, 200)
    np.testing.assert_allclose(depth_to_cloud(depth, mask, camera, root), expected)
    np.testing.assert_allclose(
        depth_to_cloud(
            torch.from_numpy(depth), torch.from_numpy(mask), torch.from_numpy(camera), root
        ).numpy(),
        expected,
    )
    assert len(depth_to_cloud(depth, None, camera, None)) == (np.nan_to_num(depth) > 0).sum()
    uv = project(expected, camera)
    np.testing.assert_allclose(uv, uv.round(), atol=1e-9)
    batch = [torch.from_numpy(np.stack([value] * 2)) for value in (depth, mask, camera, root)]
    drawn, found = sample_clouds(*batch, len(expected), torch.Generator().manual_seed(0))
    assert found.tolist() == [len(expected)] * 2
    order = np.lexsort(expected.T)
    for cloud in drawn.numpy():
        np.testing.assert_allclose(cloud[np.lexsort(cloud.T)], expected[order])  # all of them, each once
    assert not torch.equal(drawn[0], drawn[1])


@examples
@given(st.integers(1, 60), st.integers(1, 80), st.integers(0, 5), st.booleans())
def test_sample_points(there, count, seed, tensors):
    cloud = np.arange(3.0 * there).reshape(there, 3)

    def draw():
        return (
            sample_points(torch.from_numpy(cloud), count, torch.Generator().manual_seed(seed)).numpy()
            if tensors
            else sample_points(cloud, count, np.random.default_rng(seed))
        )

    drawn = draw()
    assert drawn.shape == (count, 3) and set(drawn[:, 0]) <= set(cloud[:, 0])
    assert len(set(drawn[:, 0])) == min(there, count)
    np.testing.assert_array_equal(draw(), drawn)


def test_sampled_clouds_are_fresh_and_fair():
    depth, mask, camera = (
        torch.full((1, 10, 10), 0.5),
        torch.ones(1, 10, 10, dtype=torch.bool),
        torch.tensor(crop_intrinsics(RHD_K, (160, 160, 40), 10))[None].float(),
    )
    generator, root = torch.Generator().manual_seed(0), torch.tensor([[0.0, 0, 500]])
    draws = [sample_clouds(depth, mask, camera, root, 20, generator)[0] for _ in range(200)]
    assert not torch.equal(draws[0], draws[1])
    pixels = project(torch.cat(draws), camera.expand(200, 3, 3)).round().long().reshape(-1, 2)
    counts = torch.bincount(pixels[:, 1] * 10 + pixels[:, 0], minlength=100)
    assert counts.min() > 15 and counts.max() < 70  # 40 expected, standard deviation 5.7


@pytest.mark.parametrize("size,crop", [(256, None), (64, 256), (32, 256), (48, 120)])
def test_heatmaps(size, crop):
    generator = np.random.default_rng(0)
    crop_size = crop or size
    uv = generator.uniform(0, crop_size - 1, (2, 21, 2))
    uv[0, 3] = np.nan
    uv[1, 5] = -30, 10
    visible = generator.random((2, 21)) > 0.2
    maps = heatmaps(uv, size, crop, visible=visible)
    assert maps.shape == (2, 21, size, size) and maps.max() <= 1
    shown = visible & np.isfinite(uv).all(-1)
    shown[1, 5] = False
    assert (maps.max((2, 3)) > 0).tolist() == shown.tolist()
    for sample, joint, row, column in zip(*(generator.integers(0, top, 200) for top in (2, 21, size, size))):
        u, v = ((cell + 0.5) * crop_size / size - 0.5 for cell in (column, row))
        squared = (u - uv[sample, joint, 0]) ** 2 + (v - uv[sample, joint, 1]) ** 2
        expected = np.exp(-squared / (25 * crop_size / 256) ** 2) if shown[sample, joint] else 0
        assert maps[sample, joint, row, column] == pytest.approx(expected)
    found = heatmap_argmax(maps, crop)
    assert np.abs(found - uv)[shown].max() <= crop_size / size / 2 + 1e-9
    tensors = heatmaps(torch.from_numpy(uv), size, crop, visible=torch.from_numpy(visible))
    np.testing.assert_allclose(tensors.numpy(), maps)
    np.testing.assert_allclose(heatmap_argmax(tensors, crop).numpy(), found)
    last = heatmaps(torch.from_numpy(uv), size, crop, visible=torch.from_numpy(visible), channels_last=True)
    assert torch.equal(last, tensors) and last.is_contiguous(memory_format=torch.channels_last)


def test_heatmap_width_is_a_choice():
    peak = heatmaps(np.array([[100.0, 100]]), 256, sigma=10.0)[0]
    assert peak[100, 110] == pytest.approx(np.exp(-1)) and peak[120, 100] == pytest.approx(np.exp(-4))


def test_example_hand_in_both_crops():
    uv = project(example_hand(), RHD_K)
    for box in (crop_zb(uv, np.ones(21, bool), (320, 320)), Box(*uv.mean(0), 250)):
        crop = transform_uv(crop_matrix(box, 256), uv)
        assert crop.min() >= -0.5 - 1e-9 and crop.max() <= 255.5 + 1e-9


def test_crop_of_tips_by_a_plain_loop():
    generator = np.random.default_rng(4)
    K = np.array([[587.45, 0, 325], [0, 600.67, 249], [0, 0, 1]])
    for trial in range(200):
        uv, z, visible = (
            generator.uniform(100, 100 + generator.uniform(5, 300), (21, 2)),
            generator.uniform(300, 900, 21),
            generator.random(21) < 0.6,
        )
        uv[generator.random(21) < 0.2] = np.nan
        tips = [j for j in (4, 8, 12, 16, 20) if visible[j] and np.isfinite(uv[j]).all()]
        tips = tips or [
            j for j in (4, 8, 12, 16, 20) if np.isfinite(uv[j]).all()
        ]  # hidden ones where none is visible
        if not tips:
            with pytest.raises(HandlabError, match="no finger tip"):
                crop_tips(uv, visible, z, K)
            continue
        box, (u, v) = crop_tips(uv, visible, z, K), np.array([uv[j] for j in tips]).T
        assert box.u == pytest.approx((u.min() + u.max()) / 2) and box.v == pytest.approx(
            (v.min() + v.max()) / 2
        )
        wanted = max(1.5 * np.ptp(u), 1.5 * np.ptp(v), 180 * 594.06 / np.median(z[tips]))
        assert box.size == pytest.approx(min(max(wanted, 50), 500))
        others = np.setdiff1d(np.arange(21), (4, 8, 12, 16, 20))
        moved, near = uv.copy(), z.copy()
        moved[others], near[others] = 9e5, np.nan  # other joints have no say
        assert crop_tips(moved, visible, near, K) == box

"""Batches: every modality and label moves together, and a batch is a pure function of seed and step."""

import colorsys
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from handlab.core import HandlabError
from handlab.data import batches as module
from handlab.data.batches import (
    REACH,
    Augment,
    Batches,
    Change,
    change_back,
    change_colours,
    change_labels,
    change_pixels,
    check_augment,
    colour_matrix,
    depth_mm,
    draw_change,
    draw_clouds_at_once,
    draw_pixels,
)
from handlab.data.prepare import DEPTH_STEPS, CropSettings, prepare
from handlab.data.rhd import decode_frame, drawn_frame
from handlab.hand.skeleton import root_of
from handlab.settings import numpy_generator

SIZE = 48
TENSORS = ("image", "depth", "mask", "pose", "root", "scale", "uv", "visible", "K", "cloud", "index")


class Drawn:
    source = "drawn"

    def __init__(self, count=10, depth=True):
        self.count, self.depth = count, depth

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        color, depth, parts, annotation = drawn_frame(index)
        return decode_frame(f"drawn/{index:05d}", color, depth if self.depth else None, parts, annotation)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(
        Drawn(),
        tmp_path_factory.mktemp("data") / "crops",
        CropSettings(size=SIZE),
        workers=1,
        show_progress=False,
    )


@pytest.fixture(scope="module")
def colour_only(tmp_path_factory):
    return prepare(
        Drawn(3, depth=False),
        tmp_path_factory.mktemp("data") / "crops",
        CropSettings(size=SIZE),
        workers=1,
        show_progress=False,
    )


def same(one, two):
    for name in TENSORS:
        a, b = getattr(one, name), getattr(two, name)
        assert (a is None and b is None) or torch.equal(a, b), name


def projected(joints, K):
    "Pinhole projection written out, float64."
    uvw = joints.double() @ K.double().mT
    return uvw[..., :2] / uvw[..., 2:]


def joints_of(batch):
    return batch.pose * batch.scale[:, None, None] + batch.root[:, None]


# ---- without augmentation


def test_the_plain_batch_is_the_central_crop(prepared):
    batch = Batches(prepared, 10, augment=None, shuffle=False).at(0)
    margin = prepared.settings.margin
    assert margin == 6
    inner = (slice(None), slice(margin, margin + SIZE), slice(margin, margin + SIZE))
    assert np.array_equal(
        batch.image.permute(0, 2, 3, 1).numpy(),
        np.float32(prepared.image[inner]) / np.float32(255) - np.float32(0.5),
    )
    assert np.array_equal(batch.mask[:, 0].numpy(), prepared.mask[inner])
    steps = prepared.depth[inner].astype(float)
    expected = np.where(
        steps > 0, np.clip((steps / 10 - prepared.joints[:, 9, 2, None, None]) / 200, -1, 1), 1
    )
    assert np.abs(batch.depth[:, 0].numpy() - expected).max() < 1e-5
    assert (
        batch.image.shape == (10, 3, SIZE, SIZE)
        and batch.image.dtype == batch.depth.dtype == batch.mask.dtype == torch.float32
    )
    same(batch, Batches(prepared, 10, augment=Augment.none(), shuffle=False).at(0))


def test_labels_by_hand(prepared):
    batch = Batches(prepared, 10, augment=None, shuffle=False).at(0)
    joints = prepared.joints.astype(float)
    scale = np.linalg.norm(joints[:, 10] - joints[:, 9], axis=1)
    assert np.allclose(batch.scale, scale) and np.allclose(batch.root, joints[:, 9])
    assert np.allclose(batch.pose, (joints - joints[:, 9:10]) / scale[:, None, None], atol=1e-5)
    u, v, length = prepared.box.astype(float).T
    zoom = SIZE / length
    assert np.allclose(
        batch.uv[..., 0], (prepared.uv[..., 0] - u[:, None]) * zoom[:, None] + (SIZE - 1) / 2, atol=1e-3
    )
    assert np.allclose(batch.K[:, 0, 0], prepared.K[:, 0, 0] * zoom) and np.allclose(
        batch.K[:, 1, 2], (prepared.K[:, 1, 2] - v) * zoom + (SIZE - 1) / 2, atol=1e-3
    )
    assert (
        torch.equal(batch.visible, torch.from_numpy(np.array(prepared.visible)))
        and batch.index.tolist() == list(range(10))
        and batch.cloud is None
    )


def test_another_root(prepared):
    batch = Batches(prepared, 10, augment=Augment.paper2(), shuffle=False, root="palm").at(0)
    joints = joints_of(batch)
    assert torch.allclose(root_of(joints, "palm"), batch.root, atol=1e-3)
    with pytest.raises(HandlabError, match="unknown root 'thumb'"):
        Batches(prepared, 4, root="thumb")


# ---- all move together

AUGMENTS = st.builds(
    Augment,
    rotation=st.floats(0, 180),
    shift=st.floats(0, 0.4),
    scale_low=st.floats(0.5, 1),
    scale_high=st.floats(1, 2),
    hue=st.floats(0, 0.5),
    brightness=st.floats(0, 0.3),
    contrast=st.floats(0, 0.5),
)


@given(AUGMENTS, st.integers(0, 1000))
@hypothesis_settings(
    max_examples=40, deadline=None, phases=[Phase.generate]
)  # no shrinking: a failure should be quick
def test_joints_camera_and_pixels_always_agree(prepared, augment, step):
    batch = Batches(prepared, 5, augment=augment, seed=3).at(step)
    assert (projected(joints_of(batch), batch.K) - batch.uv).abs().max() < 0.1
    assert (
        torch.allclose(batch.K[:, 0, 0], batch.K[:, 1, 1], rtol=1e-4)
        and (batch.K[:, [0, 1], [1, 0]].abs() < 1e-2).all()
        and torch.allclose(batch.K[:, 2], torch.tensor([0.0, 0, 1]), atol=1e-5)
    )
    assert ((batch.image >= -0.5) & (batch.image <= 0.5)).all() and set(batch.mask.unique().tolist()) <= {
        0.0,
        1.0,
    }


def test_bones_keep_their_lengths_and_depth(prepared):
    plain, turned = (
        Batches(prepared, 10, augment=augment, shuffle=False).at(0) for augment in (None, Augment.paper2())
    )
    assert torch.allclose(
        torch.cdist(plain.pose, plain.pose), torch.cdist(turned.pose, turned.pose), atol=1e-4
    )
    assert torch.allclose(plain.pose[..., 2], turned.pose[..., 2], atol=1e-5) and torch.allclose(
        plain.root[:, 2], turned.root[:, 2]
    )
    assert not torch.allclose(plain.pose, turned.pose, atol=0.1)


def test_a_quarter_turn_turns_the_picture_clockwise(prepared):
    "Independent of the warp: NumPy's rot90."
    stored = torch.from_numpy(np.array(prepared.image)).permute(0, 3, 1, 2).float()
    quarter = Change(
        torch.full((10,), float(np.pi / 2)), torch.ones(10), torch.zeros(10, 2), *torch.zeros(3, 10)
    )
    for mode in ("bilinear", "nearest"):
        crop = change_pixels(stored, quarter, SIZE, mode).numpy()
        expected = np.rot90(stored.numpy(), -1, axes=(2, 3))[..., 6:-6, 6:-6]
        assert np.abs(crop - expected).max() < 0.02
    pose, root, uv, K = change_labels(
        quarter,
        SIZE,
        torch.eye(3)[None].repeat(10, 7, 1),
        torch.zeros(10, 3),
        torch.full((10, 21, 2), 10.0),
        torch.eye(3).repeat(10, 1, 1),
    )
    assert torch.allclose(
        pose[0, 0], torch.tensor([0.0, 1, 0]), atol=1e-6
    )  # x has become y, which points down
    assert torch.allclose(
        uv[0, 0], torch.tensor([SIZE - 1 - 10.0, 10.0]), atol=1e-4
    )  # left above has become right above


def test_the_warp_is_opencvs(prepared):
    stored = np.array(prepared.image[0]).astype(np.float32)
    angle, scale, shift = 0.7, 1.15, np.array([0.06, -0.03])
    change = Change(
        torch.tensor([angle]),
        torch.tensor([scale]),
        torch.from_numpy(shift)[None].float(),
        *torch.zeros(3, 1),
    )
    crop = (
        change_pixels(torch.from_numpy(stored).permute(2, 0, 1)[None], change, SIZE, "bilinear")[0]
        .permute(1, 2, 0)
        .numpy()
    )
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.full(2, (len(stored) - 1) / 2)
    offset = np.full(2, (SIZE - 1) / 2) + shift * SIZE - turn @ centre
    expected = cv2.warpAffine(stored, np.column_stack([turn, offset]), (SIZE, SIZE), flags=cv2.INTER_LINEAR)
    assert (
        np.abs(crop - expected).mean() < 0.5 and np.abs(crop - expected).max() < 8
    )  # OpenCV places samples on 1/32 px


def test_compiled_crops_are_those_of_the_passes(prepared):
    "One pass by compiled code against grid_sample and colour matrices, also far beyond the border."
    image, depth, mask = (
        torch.from_numpy(np.array(prepared.arrays[key]).view({"depth": np.int16}.get(key, np.uint8)))
        for key in ("image", "depth", "mask")
    )
    for augment in (Augment.paper2(), Augment(180.0, 0.6, 0.5, 2.0, 0.3, 0.3, 0.5, 0.8, 0.4)):
        change = draw_change(augment, 10, numpy_generator(0, "change"))
        drawn, mm, on = draw_pixels({"image": image, "depth": depth, "mask": mask}, change, SIZE)
        plain = change_colours(
            change_pixels(image.permute(0, 3, 1, 2) / 255 - 0.5, change, SIZE, "bilinear"), change
        )
        assert torch.allclose(drawn, plain, atol=2e-4)
        maps = change_pixels(torch.stack([depth_mm(depth), mask.float()], 1), change, SIZE, "nearest")
        assert (
            torch.cat([mm, on], 1) == maps
        ).float().mean() > 0.9995  # a source half-way between two pixels may fall to either


def test_compiled_clouds_are_random_pixels_of_the_hand(prepared):
    batch = Batches(prepared, 10, augment=Augment.paper2(), shuffle=False, cloud_points=64).at(0)
    ours = batch.cloud * batch.scale[:, None, None] + batch.root[:, None]
    for sample in range(10):
        rows, columns = torch.nonzero(
            (batch.mask[sample, 0] > 0) & (batch.depth[sample, 0] < 1), as_tuple=True
        )
        z = batch.depth[sample, 0, rows, columns].double() * 200 + batch.root[sample, 2]
        every = z[:, None] * (
            torch.stack([columns, rows, torch.ones_like(rows)], 1).double()
            @ torch.linalg.inv(batch.K[sample].double()).T
        )
        every = every[(every - batch.root[sample]).norm(dim=1) < 199]
        near = torch.cdist(ours[sample].double(), every)
        assert near.amin(1).max() < 0.5  # mm: each point is a pixel's
        if len(every) >= 64:
            assert len(near.argmin(1).unique()) == 64  # and no pixel is taken twice
    again = Batches(prepared, 10, augment=Augment.paper2(), shuffle=False, cloud_points=64, seed=1).at(0)
    assert not torch.equal(again.cloud, batch.cloud)


def pixel_by_pixel(stored, back, light, size):
    "The crops (B,3,S,S) in 32 bits, one pixel after the other, and how many lie on the border or beyond."
    one, half, whole = np.float32(1), np.float32(0.5), np.float32(1 / 255)
    drawn, border = np.zeros((len(stored), 3, size, size), np.float32), 0
    for b, v, u in np.ndindex(len(stored), size, size):
        x, y = (m[0] * np.float32(u) + (m[1] * np.float32(v) + m[2]) for m in back[b])
        column, row = int(np.floor(x)), int(np.floor(y))
        right, below = x - np.float32(column), y - np.float32(row)
        shares = [(one - below) * (one - right), (one - below) * right, below * (one - right), below * right]
        corners = [(row, column), (row, column + 1), (row + 1, column), (row + 1, column + 1)]
        held = [min(corner) >= 0 and max(corner) < stored.shape[1] for corner in corners]
        pixels = [stored[b][corner] if on else np.zeros(3) for corner, on in zip(corners, held)]
        terms = [share * pixel.astype(np.float32) for share, pixel in zip(shares, pixels)]
        within, border = sum(share for share, on in zip(shares, held) if on), border + (not all(held))
        if all(held):
            colour = ((terms[0] + terms[1]) + terms[2] + terms[3]) * whole - half
        else:
            colour = sum(terms, np.zeros(3, np.float32)) * whole - half * np.float32(within)
        lit = light[b, :, 0] * colour[0] + light[b, :, 1] * colour[1]
        drawn[b, :, v, u] = np.clip(lit + light[b, :, 2] * colour[2] + light[b, :, 3], -half, half)
    return drawn, border


def test_compiled_crops_are_those_of_single_pixels_to_the_bit():
    "Trained networks rest on these numbers: faster code must keep them."
    stored = np.random.default_rng(0).integers(0, 256, (4, 21, 21, 3), np.uint8)
    for augment in (Augment.paper2(), Augment(180.0, 0.6, 0.5, 2.0, 0.3, 0.3, 0.5, 0.8, 0.4)):
        change = draw_change(augment, 4, numpy_generator(0, "change"))
        matrix = colour_matrix(change.hue, change.contrast, change.saturation)
        light = torch.cat([matrix, change.brightness[:, None, None].expand(-1, 3, 1)], 2).numpy()
        plain, border = pixel_by_pixel(stored, change_back(change, 21, 17), light, 17)
        drawn = draw_pixels({"image": torch.from_numpy(stored)}, change, 17)[0]
        assert torch.equal(drawn, torch.from_numpy(plain)) and 0 < border < 4 * 17 * 17


def points_of(depth, mask, back, ray, root, size):
    "Crop pixels and depths (u, v, mm) on a hand near its root, one pixel after the other."
    for v, u in np.ndindex(size, size):
        column, row = (int(np.floor(float(m[0]) * u + float(m[1]) * v + float(m[2]) + 0.5)) for m in back)
        if 0 <= column < len(depth) and 0 <= row < len(depth) and mask[row, column] and depth[row, column]:
            z = depth[row, column] / DEPTH_STEPS
            x, y = ((ray[axis, 0] * u + ray[axis, 1] * v + ray[axis, 2]) * z for axis in (0, 1))
            if (x - root[0]) ** 2 + (y - root[1]) ** 2 + (z - root[2]) ** 2 < REACH**2:
                yield u, v, z


def test_compiled_clouds_are_those_of_single_pixels():
    "The listed pixels, shuffled; where there are fewer than points, round again; where there are none, 0."
    draw, size, count = np.random.default_rng(0), 17, 40
    depth = draw.integers(5500, 6500, (4, 21, 21), np.uint16) * (draw.random((4, 21, 21)) < 0.8)
    mask = np.uint8(draw.random((4, 21, 21)) < np.reshape([0.9, 0.4, 0.05, 0], (4, 1, 1)))
    depth[0, :, :10] += 1500  # beyond the reach
    change = draw_change(Augment(180.0, 0.3, 0.5, 2.0), 4, numpy_generator(0, "change"))
    K, root = torch.tensor([[40.0, 0, 8], [0, 40, 8], [0, 0, 1]]).expand(4, 3, 3), torch.zeros(4, 3)
    root[:, 2] = 600 * 10 / DEPTH_STEPS
    labels, chance = dict(K=K, root=root, scale=torch.full((4,), 30.0)), torch.rand(4, count)
    kept = torch.from_numpy(depth.astype(np.uint16).view(np.int16)), torch.from_numpy(mask)
    backs = change_back(change, 21, size)
    clouds = draw_clouds_at_once(*kept, backs, labels, size, chance).numpy()
    ray = torch.linalg.inv(K[0].double()).numpy()
    numbers = []
    for b in range(4):
        points = list(points_of(depth[b], mask[b], backs[b], ray, root[b].numpy(), size))
        numbers.append(len(points))
        for n in range(min(count, len(points))):
            other = n + int(float(chance[b, n]) * (len(points) - n))
            points[n], points[other] = points[other], points[n]
        for n in range(count):
            u, v, z = points[n % len(points)] if points else (0, 0, 0)
            place = (ray @ [u, v, 1]) * z if points else root[b].numpy()
            assert np.allclose(clouds[b, n], (place - root[b].numpy()) / 30, atol=1e-6)
    assert numbers[0] > count > numbers[2] > 0 == numbers[3]


def centroid(picture):
    weight = picture.double()
    v, u = torch.meshgrid(*(torch.arange(length).double() for length in picture.shape), indexing="ij")
    return torch.stack([(u * weight).sum(), (v * weight).sum()]) / weight.sum()


class Spots(Drawn):
    "A spot at joint 10, in all three kinds of pixels."

    def __getitem__(self, index):
        color, depth, parts, annotation = drawn_frame(index)
        u, v = annotation["uv_vis"][(0 if index % 2 else 21) + 11, :2]  # canonical 10
        grid_v, grid_u = np.mgrid[:320, :320]
        near = np.hypot(grid_u - u, grid_v - v) < 5
        depth[~near] = 255
        return decode_frame(
            f"spot/{index}",
            np.where(near, 255, 0).astype(np.uint8)[..., None].repeat(3, 2),
            depth,
            np.where(near, 3 if index % 2 else 19, 0).astype(np.uint8),
            annotation,
        )


def test_pixels_follow_the_labels(tmp_path):
    "A spot drawn at a joint stays at that joint's uv, in image, depth and mask."
    prepared = prepare(Spots(8), tmp_path / "crops", CropSettings(size=64), workers=1, show_progress=False)
    augment = Augment(
        rotation=180.0, shift=0.05, scale_low=0.9, scale_high=1.0, hue=0.0, brightness=0.0, contrast=0.0
    )
    batch = Batches(prepared, 8, augment=augment, shuffle=False).at(0)
    for index in range(8):
        for picture in (
            batch.image[index, 0] + 0.5 > 0.75,
            batch.depth[index, 0] < 1,
            batch.mask[index, 0] > 0,
        ):
            seen = picture.clone()
            seen[[0, -1]] = False
            seen[:, [0, -1]] = False
            assert seen.any() and torch.equal(seen, picture)  # the whole spot is in the crop
            assert (centroid(picture) - batch.uv[index, 10]).norm() < 0.8


def test_depth_and_mask_are_never_mixed(prepared):
    batch = Batches(prepared, 10, augment=Augment.paper2(), shuffle=False).at(0)
    for index in range(10):
        stored = np.unique(prepared.depth[index]).astype(np.float32)
        allowed = torch.from_numpy(
            np.append((stored[stored > 0] / 10 - prepared.joints[index, 9, 2]) / 200, 1)
        ).float()
        assert torch.cdist(batch.depth[index].unique()[:, None], allowed[:, None]).amin(1).max() < 1e-5
        assert (
            batch.mask[index].bool() == (batch.depth[index] < 1)
        ).all()  # drawn hands have depth just where they are


def test_depth_is_told_from_the_root_in_200_mm(tmp_path):
    class Plane(Drawn):
        def __getitem__(self, index):
            color, depth, parts, annotation = drawn_frame(index)
            annotation["xyz"][:, 2] = 0.5
            depth[:] = 255
            depth[:, :160] = (26, 55, 0)  # 6711 steps: 0.51202 m
            depth[:, 120:160] = (40, 0, 0)  # 10240 steps: 0.78126 m, more than 200 mm away
            depth[:60, :160] = (13, 0, 0)  # 3328 steps: 0.25391 m, more than 200 mm before
            return decode_frame(f"plane/{index}", color, depth, parts, annotation)

    prepared = prepare(
        Plane(4), tmp_path / "crops", CropSettings(size=96, context=3.0), workers=1, show_progress=False
    )
    values = torch.stack(
        [
            Batches(prepared, 4, augment=Augment(180.0, 0.3, 0.4, 0.5), shuffle=False, seed=seed).at(0).depth
            for seed in range(3)
        ]
    ).unique()
    assert (
        (values[:, None] - torch.tensor([-1, 0.0601, 1])).abs().amin(1).max() < 3e-4
        and values.min() == -1
        and len(values) == 3
    )


def test_depth_beyond_15_bits(tmp_path):
    "4 m are 40000 steps; read as a signed number they would lie in front of the camera."

    class Wall(Drawn):
        def __getitem__(self, index):
            color, depth, parts, annotation = drawn_frame(index)
            depth[:] = (204, 204, 0)  # 0.8 of 5 m
            return decode_frame(f"wall/{index}", color, depth, parts, annotation)

    prepared = prepare(Wall(1), tmp_path / "crops", CropSettings(size=32), workers=1, show_progress=False)
    assert prepared.depth.max() == 40000 and (Batches(prepared, 1, augment=Augment()).at(0).depth == 1).all()


# ---- clouds


def test_clouds_lie_on_the_masked_surface(prepared):
    batch = Batches(prepared, 10, augment=Augment.paper2(), shuffle=False, cloud_points=200).at(0)
    assert batch.cloud.shape == (10, 200, 3)
    points = batch.cloud * batch.scale[:, None, None]
    assert points.norm(dim=-1).max() <= 200.1  # within 0.2 m of the root
    uv = projected(points + batch.root[:, None], batch.K)
    pixel = uv.round().long()
    assert (
        (uv - pixel).abs().max() < 0.01 and pixel.min() >= 0 and pixel.max() < SIZE
    )  # points come from pixels of the crop
    for index in range(10):
        u, v = pixel[index].T
        assert (batch.mask[index, 0, v, u] == 1).all()
        assert torch.allclose(points[index, :, 2] / 200, batch.depth[index, 0, v, u], atol=1e-4)


def test_clouds_turn_with_the_pose(prepared):
    plain, turned = (
        Batches(prepared, 10, augment=augment, shuffle=False, cloud_points=400).at(0)
        for augment in (None, Augment(180.0, 0.0, 1.0, 1.0))
    )
    for index in range(10):
        rotation = torch.linalg.lstsq(plain.pose[index], turned.pose[index]).solution  # from the joints alone
        gap, unturned = (
            torch.cdist(cloud, turned.cloud[index]).amin(1).mean() * turned.scale[index]
            for cloud in (plain.cloud[index] @ rotation, plain.cloud[index])
        )
        assert gap < 5  # mm; the crop's pixels are about 4 mm
        if rotation[0, 0] < 0.8:
            assert unturned > 2 * gap


def test_clouds_are_drawn_anew(prepared):
    batches = Batches(prepared, 10, augment=None, seed=1, cloud_points=32)
    one, again, other = batches.at(0), batches.at(0), batches.at(1)
    assert (
        torch.equal(one.cloud, again.cloud)
        and torch.equal(one.index, other.index)
        and not torch.equal(one.cloud, other.cloud)
    )
    unique = [len(cloud.unique(dim=0)) for cloud in one.cloud]
    assert min(unique) == 32  # no point twice while there are enough


def test_a_cloud_without_points_is_zero(tmp_path):
    class Far(Drawn):
        def __getitem__(self, index):
            color, depth, parts, annotation = drawn_frame(index)
            depth[:] = (150, 0, 0)  # all of it at 2.9 m
            return decode_frame(f"far/{index}", color, depth, parts, annotation)

    batch = Batches(
        prepare(Far(2), tmp_path / "crops", CropSettings(size=32), workers=1, show_progress=False),
        2,
        augment=Augment(),
        cloud_points=16,
    ).at(0)
    assert (batch.cloud == 0).all()


# ---- colour


def coloured(pixels, hue=0.0, brightness=0.0, contrast=1.0):
    image = torch.tensor(pixels, dtype=torch.float32).T.reshape(1, 3, 1, -1) - 0.5
    return (
        (
            change_colours(
                image,
                Change(
                    *torch.zeros(3, 1),
                    torch.tensor([hue]),
                    torch.tensor([brightness]),
                    torch.tensor([contrast]),
                ),
            )
            + 0.5
        )
        .reshape(3, -1)
        .T.numpy()
    )


def test_hue_is_the_colour_circle():
    for turn in (1 / 3, 2 / 3):
        for pixel in ((1, 0, 0), (0.8, 0.3, 0.3), (0.2, 0.6, 0.2), (0.5, 0.5, 0.5)):
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            assert np.allclose(
                coloured([pixel], hue=turn)[0], colorsys.hsv_to_rgb((h + turn) % 1, s, v), atol=1e-5
            )
    h, s, v = colorsys.rgb_to_hsv(*coloured([(0.6, 0.4, 0.4)], hue=0.1)[0])
    assert abs(h - 0.1) < 0.02  # a tenth of a turn moves the hue by a tenth


def test_brightness_and_contrast_by_hand():
    assert np.allclose(coloured([(0.5, 0.6, 0.2)], brightness=0.1), [[0.6, 0.7, 0.3]], atol=1e-6)
    assert np.allclose(coloured([(0.5, 0.6, 0.2)], contrast=1.5), [[0.5, 0.65, 0.05]], atol=1e-6)
    assert np.allclose(coloured([(0.9, 0, 1)], brightness=0.3), [[1, 0.3, 1]], atol=1e-6)  # clipped


def test_colour_alone_moves_nothing(prepared):
    plain, lit = (
        Batches(prepared, 10, augment=augment, shuffle=False).at(0)
        for augment in (None, Augment(0.0, 0.0, 1.0, 1.0, 0.1, 0.2, 0.3))
    )
    assert not torch.equal(plain.image, lit.image)
    for name in ("depth", "mask", "pose", "root", "uv", "K"):
        assert torch.equal(getattr(plain, name), getattr(lit, name)), name


# ---- which batch


def test_a_batch_is_a_function_of_seed_and_step(prepared):
    options = dict(augment=Augment.paper2(), cloud_points=16)
    walked = Batches(prepared, 3, seed=5, **options)
    passed = [walked.at(step) for step in range(9)]
    resumed = Batches(prepared, 3, seed=5, **options)
    same(resumed.at(7), passed[7])
    same(resumed.at(2), passed[2])
    assert not torch.equal(Batches(prepared, 3, seed=6, **options).at(7).image, passed[7].image)
    everything = Batches(prepared, 10, seed=5, **options)  # the same frames at every step, otherwise moved
    assert torch.equal(everything.at(0).index, everything.at(1).index) and not torch.allclose(
        everything.at(0).uv, everything.at(1).uv, atol=1
    )


def test_an_epoch_shows_no_frame_twice(prepared):
    batches = Batches(prepared, 3, augment=None)
    assert len(batches) == 3
    epochs = [
        torch.cat([batches.at(step).index for step in range(start, start + 3)]).tolist()
        for start in (0, 3, 6, 9, 12, 15)
    ]
    assert all(len(set(epoch)) == 9 for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) > 1
    assert set(sum(epochs, [])) == set(range(10))  # the frame left out changes


def test_one_pass_in_order(prepared):
    batches = Batches(prepared, 4, augment=None, shuffle=False)
    assert len(batches) == 3 and [batch.index.tolist() for batch in batches] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]
    for step in (-1, 3):
        with pytest.raises(HandlabError, match="one pass has 3 steps"):
            batches.at(step)


def test_an_epoch_is_ordered_once(prepared, monkeypatch):
    "A permutation of millions at every step would cost more than the step."
    asked = []
    monkeypatch.setattr(
        module, "numpy_generator", lambda *labels: asked.append(labels[:2]) or numpy_generator(*labels)
    )
    batches = Batches(prepared, 2, seed=12345)
    for step in range(10):
        batches.at(step)
    assert asked.count((12345, "order")) == 2  # ten steps are two epochs


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux only")
@pytest.mark.parametrize(
    "memory, shuffle, random",
    [(10**9, True, False), (1000, True, True), (1000, False, False), (0, True, False)],
)
def test_nothing_is_read_ahead_in_what_memory_cannot_hold(prepared, monkeypatch, memory, shuffle, random):
    monkeypatch.setattr(module, "memory_of_machine", lambda: memory)
    mine = prepared.subset(slice(0, 8))  # a map of its own
    batches = Batches(mine, 2, shuffle=shuffle)
    start = mine.arrays["depth"].ctypes.data // 4096 * 4096
    entry = Path("/proc/self/smaps").read_text().split(f"{start:08x}-", 1)[1]
    flags = entry.split("VmFlags:", 1)[1].split("\n", 1)[0].split()
    assert ("rr" in flags) == random and len(batches.at(0)) == 2


def test_labels_are_held_for_small_training_sets_and_where_the_pixels_are(prepared, monkeypatch):
    "Held or computed with each batch, they are the same to the bit."
    held = Batches(prepared, 2)
    assert held.labels.held["pose"].shape == (10, 21, 3)
    assert Batches(prepared, 2, shuffle=False).labels.held is None
    monkeypatch.setattr(module, "_HELD", 9)
    computed = Batches(prepared, 2)
    assert computed.labels.held is None and Batches(prepared, 2, resident=True).labels.held is not None
    for step in range(5):
        one, other = held.at(step), computed.at(step)
        for name in ("pose", "root", "scale", "uv", "visible", "K", "image"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_fewer_frames_than_a_batch(prepared):
    batches = Batches(prepared, 64)
    assert len(batches) == 1 and sorted(batches.at(5).index.tolist()) == list(range(10))


def test_subsets_count_their_own_rows(prepared):
    whole, tail = (
        Batches(prepared, 10, augment=None, shuffle=False).at(0),
        Batches(prepared.subset(slice(6, None)), 4, augment=None, shuffle=False).at(0),
    )
    assert tail.index.tolist() == [0, 1, 2, 3]
    for name in ("image", "depth", "mask", "pose", "uv", "K"):
        assert torch.equal(getattr(tail, name), getattr(whole, name)[6:]), name
    odd = Batches(prepared.subset([7, 1]), 2, augment=None, shuffle=False, resident=True).at(0)
    assert torch.equal(odd.image, whole.image[[7, 1]]) and torch.equal(odd.depth, whole.depth[[7, 1]])


@pytest.mark.parametrize(
    "options", [dict(prefetch=1), dict(prefetch=3), dict(resident=True), dict(resident=True, prefetch=2)]
)
def test_ways_to_get_them_do_not_change_them(prepared, options):
    plain, other = (Batches(prepared, 3, augment=Augment(), cloud_points=8, **more) for more in ({}, options))
    for step in (0, 1, 2, 3, 9, 4, 4):
        same(plain.at(step), other.at(step))


def test_prefetch_stays_within_a_pass(prepared):
    batches = Batches(prepared, 4, augment=None, shuffle=False, prefetch=5)
    assert [len(batch) for batch in batches] == [4, 4, 2] and [len(batch) for batch in batches] == [4, 4, 2]


def test_batches_leave_the_stored_arrays_alone(prepared):
    before = np.array(prepared.image)
    for step in range(3):
        Batches(prepared, 10).at(step)
    assert np.array_equal(prepared.image, before)


def test_a_batch_moves(prepared):
    batch = Batches(prepared, 2, modalities=("image",)).at(0)
    assert batch.depth is None and batch.mask is None and len(batch) == 2
    assert (
        batch.to("cpu").image.device.type == "cpu"
        and batch.to("meta").uv.device.type == "meta"
        and batch.to("meta").depth is None
    )


# ---- what is refused


def test_what_is_missing_is_named(colour_only, prepared):
    assert Batches(colour_only, 2, modalities=("image", "mask")).at(0).depth is None
    with pytest.raises(
        HandlabError, match="drawn was prepared without depth; leave depth out of modalities, or"
    ):
        Batches(colour_only, 2)
    with pytest.raises(
        HandlabError, match="prepared without depth; leave depth out of modalities and clouds"
    ):
        Batches(colour_only, 2, modalities=("image",), cloud_points=8)
    with pytest.raises(HandlabError, match="modality 'infrared': Batches has no such modality"):
        Batches(prepared, 2, modalities=("infrared",))
    with pytest.raises(HandlabError, match="there is no frame"):
        Batches(prepared.subset([]), 2)
    with pytest.raises(HandlabError, match="batch_size: 0 is not possible"):
        Batches(prepared, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(prepared):
    with pytest.raises(HandlabError, match="device 'cuda': this machine has 0 CUDA"):
        Batches(prepared, 2, device="cuda")


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(rotation=-1.0), "rotation: -1.0 is below 0"),
        (dict(scale_low=2.0), "2.0 to 1.1 is not a range"),
        (dict(hue="much"), "'much' is not float"),
        (dict(shift=float("nan")), "not a finite"),
    ],
)
def test_augmentations_that_cannot_be(prepared, change, said):
    with pytest.raises(HandlabError, match=said):
        Batches(prepared, 2, augment=Augment(**change))


def test_paper_2s_ranges():
    augment = Augment.paper2()
    assert (augment.rotation, augment.shift * 256, augment.scale_low, augment.scale_high, augment.hue) == (
        180,
        20,
        1,
        1.2,
        0.1,
    ) and augment.brightness == augment.contrast == 0


# ---- on a GPU, where there is one


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("resident", ["auto", False])
def test_the_gpu_makes_the_same_batches(prepared, resident):
    here, there = (
        Batches(prepared, 5, device=device, augment=Augment.paper2(), resident=resident)
        for device in ("cpu", "cuda")
    )
    for step in range(4):
        one, two = here.at(step), there.at(step)
        assert two.image.is_cuda and torch.equal(one.index, two.index.cpu())
        for name in ("pose", "root", "uv", "K"):
            assert torch.allclose(getattr(one, name), getattr(two, name).cpu(), atol=1e-2), name
        assert (one.image - two.image.cpu()).abs().mean() < 1e-3 and (
            one.depth - two.depth.cpu()
        ).abs().mean() < 0.01


DRAWING = """
import sys, hashlib
from handlab.data.batches import Batches
from handlab.data.prepare import DEPTH_STEPS, CropSettings, prepare
from handlab.data.rhd import decode_frame, drawn_frame
class Drawn:
    source = 'drawn'
    def __len__(self): return 8
    def __getitem__(self, index): return decode_frame(f'drawn/{index}', *drawn_frame(index))
    def identity(self): return 'drawn'
prepared = prepare(Drawn(), sys.argv[1], CropSettings(size=64), workers=1, show_progress=False)
batch = Batches(prepared, 8, cloud_points=64).at(0)
values = batch.image, batch.depth, batch.mask, batch.cloud
print(*(hashlib.md5(value.contiguous().numpy().tobytes()).hexdigest() for value in values))
"""


def test_the_process_that_compiles_draws_what_later_ones_draw(tmp_path):
    "The first training compiles the drawing, later ones find it compiled: a seed must give the same numbers."
    (tmp_path / "script.py").write_text(DRAWING)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(module.__file__).parents[2]),
        "NUMBA_CACHE_DIR": str(tmp_path / "compiled"),
    }
    first, second = (
        subprocess.run(
            [sys.executable, tmp_path / "script.py", tmp_path / "crops"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    )
    assert first == second and len(first.split()) == 4 and any((tmp_path / "compiled").rglob("*.nbc"))


def test_colour_can_be_stretched_or_lost_and_the_rest_stays():
    plain, other = (
        draw_change(Augment(**more), 4000, numpy_generator(0, "change"))
        for more in ({}, dict(saturation=0.5, grey=0.25))
    )
    for name in Change._fields[:-1]:
        assert torch.equal(getattr(plain, name), getattr(other, name)), name
    assert (plain.saturation == 1).all()
    grey, kept = other.saturation == 0, other.saturation[other.saturation > 0]
    assert abs(grey.float().mean() - 0.25) < 0.03 and 0.5 <= kept.min() < 0.52 and 1.48 < kept.max() <= 1.5
    image = change_colours(torch.rand(4000, 3, 2, 2) - 0.5, other)
    most = (image.amax(1) - image.amin(1)).amax((1, 2))  # of any pixel's colour
    assert most[grey].max() < 1e-5 < 0.01 < most[~grey].min()


@pytest.mark.parametrize("name", ["saturation", "grey"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_colour_out_of_range(name, value):
    with pytest.raises(HandlabError, match=f"Augment.{name}: {value} is not between 0 and 1"):
        check_augment(Augment(**{name: value}))

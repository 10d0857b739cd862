"The rasteriser against formulas and a slow reference; parts, shadow and outlines."

import cv2
import numpy as np
import pytest

from handlab.settings import numpy_generator
from handlab.sim import render, shade
from handlab.sim.render import Mesh, rasterise, tube, tube_faces
from handlab.sim.shape import make_person

K = np.array([[280, 0, 160], [0, 300, 150], [0, 0, 1]], np.float32)
SIZE = 320


def pixel_rays():
    u, v = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    return np.stack([(u - 160) / 280, (v - 150) / 300, np.ones((SIZE, SIZE))], -1)


def ball(centre, radius, rings=61, points=120):
    turn = np.linspace(0.01, np.pi - 0.01, rings)
    path = np.asarray(centre) - np.cos(turn)[:, None] * [0, radius, 0]
    vertices, normals, _ = tube(
        path, np.repeat(np.sin(turn)[:, None] * radius, 2, 1), np.array([1.0, 0, 0]), points
    )
    return Mesh(vertices, tube_faces(rings, points)), normals


def slow_raster(vertices, faces):
    "Depth and triangle of every pixel by testing all triangles in double precision."
    screen = vertices[:, :2].astype(float) / vertices[:, 2:] * [280, 300] + [160, 150]
    depth, triangle = np.full((SIZE, SIZE), np.inf), np.full((SIZE, SIZE), -1)
    u, v = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    pixels = np.stack([u, v], -1).astype(float)

    def cross(p, q):
        return p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]

    for t, (a, b, c) in enumerate(faces):
        area = cross(screen[b] - screen[a], screen[c] - screen[a])
        normal = np.cross(vertices[b] - vertices[a], vertices[c] - vertices[a])
        if normal @ vertices[a] >= 0:
            continue  # it looks away
        wb, wc = (
            cross(pixels - screen[a], screen[c] - screen[a]) / area,
            cross(screen[b] - screen[a], pixels - screen[a]) / area,
        )
        z = 1 / ((1 - wb - wc) / vertices[a, 2] + wb / vertices[b, 2] + wc / vertices[c, 2])
        nearer = (wb >= 0) & (wc >= 0) & (wb + wc <= 1) & (z < depth)
        depth[nearer], triangle[nearer] = z[nearer], t
    return depth, triangle


def test_depth_of_a_ball_is_the_formula_s():
    centre, radius = np.array([30.0, -20, 520]), 90
    mesh, _ = ball(centre, radius)
    picture, rays = rasterise([mesh], K, SIZE, SIZE), pixel_rays()
    squared, half = (rays**2).sum(2), rays @ centre
    inside = half**2 - squared * (centre @ centre - radius**2)
    exact = (half - np.sqrt(np.maximum(inside, 0))) / squared
    assert np.abs(picture.depth - exact)[inside > 1500].max() < 0.4
    assert abs(int((picture.mesh == 0).sum()) - int((inside > 0).sum())) < 0.01 * (inside > 0).sum()
    assert (picture.depth[inside < -300] == 0).all()


def test_depth_of_a_tilted_plane_is_the_formula_s_and_weights_give_the_spot():
    normal, anchor = np.array([0.3, -0.5, -1.0]), np.array([0.0, 0, 600])
    corners = np.array([[-400, -400], [400, -400], [400, 400], [-400, 400]], float)
    z = (normal @ anchor - corners @ normal[:2]) / normal[2]
    vertices = np.column_stack([corners, z]).astype(np.float32)
    faces = np.array([[0, 2, 1], [0, 3, 2]], np.int32)
    picture, rays = rasterise([Mesh(vertices, faces)], K, SIZE, SIZE), pixel_rays()
    exact, hit = (normal @ anchor) / (rays @ normal), picture.mesh == 0
    assert hit.mean() > 0.8
    assert np.abs(picture.depth - exact)[hit].max() < 0.05
    spots = np.einsum("pk,pkc->pc", picture.weights[hit], vertices[faces[picture.triangle[hit]]])
    np.testing.assert_allclose(spots, rays[hit] * exact[hit][:, None], atol=0.2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_triangles_as_the_slow_reference(seed):
    generator = np.random.default_rng(seed)
    centres = generator.uniform([-250, -250, 400], [250, 250, 900], (60, 1, 3))
    vertices = (centres + generator.normal(size=(60, 3, 3)) * 60).reshape(-1, 3).astype(np.float32)
    vertices[:, 2] = np.maximum(vertices[:, 2], 200)
    faces = np.arange(180, dtype=np.int32).reshape(60, 3)
    picture = rasterise([Mesh(vertices, faces)], K, SIZE, SIZE)
    depth, triangle = slow_raster(vertices, faces)
    assert (picture.triangle == triangle).mean() > 0.999  # only pixels exactly on an edge may differ
    same = (picture.triangle == triangle) & (triangle >= 0)
    assert same.sum() > 5000 and np.abs(picture.depth[same] / depth[same] - 1).max() < 1e-3


def test_meshes_share_one_buffer_in_any_order():
    near, far = ball([0, 0, 450], 40)[0], ball([20, 0, 600], 90)[0]
    one, two = rasterise([near, far], K, SIZE, SIZE), rasterise([far, near], K, SIZE, SIZE)
    np.testing.assert_array_equal(one.depth, two.depth)
    np.testing.assert_array_equal(one.mesh == 0, two.mesh == 1)
    assert (
        (one.mesh == 0).any() and (one.mesh == 1).any() and one.triangle[one.mesh == 1].max() < len(far.faces)
    )


def test_back_faces_are_culled_and_what_reaches_the_camera_is_left_out():
    mesh = ball([0, 0, 500], 60)[0]
    front, back = (
        rasterise([mesh], K, SIZE, SIZE),
        rasterise([mesh._replace(faces=mesh.faces[:, ::-1].copy())], K, SIZE, SIZE),
    )
    assert back.depth[150, 160] > 550 > 450 > front.depth[150, 160]  # inside out, the far wall is seen
    assert (rasterise([ball([0, 0, 0], 60)[0]], K, SIZE, SIZE).mesh == -1).all()
    assert np.isfinite(rasterise([ball([0, 0, 60], 100)[0]], K, SIZE, SIZE).depth).all()


def test_a_closed_surface_has_no_holes():
    picture = rasterise(
        [ball([10, 5, 300], 100, 200, 300)[0]], K, SIZE, SIZE
    )  # triangles smaller than pixels
    for row in picture.mesh:
        seen = np.flatnonzero(row == 0)
        assert len(seen) == 0 or len(seen) == seen[-1] - seen[0] + 1


def test_bones_are_the_interpolated_part_weights():
    person = make_person(numpy_generator(0, "test"), "fast")
    vertices = (person.vertices * [1, -1, -1] + [0, 60, 400]).astype(np.float32)
    mesh = Mesh(vertices, person.faces)
    picture = rasterise([mesh], K, SIZE, SIZE)
    nearness, triangle = render.empty_buffers(SIZE, SIZE)
    screen = render.project_vertices(vertices, K)
    render.raster(screen, person.faces, 0, nearness, triangle)
    bones, parts = np.full((SIZE, SIZE), 255, np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    box = render.fill_bones(
        screen,
        person.faces,
        0,
        triangle,
        person.part_weight,
        person.finger,
        render.part_ids("right"),
        bones,
        parts,
    )
    hit = picture.mesh == 0
    assert (hit == (bones < 255)).all() and not hit[:, : box[0]].any() and not hit[box[3] :].any()
    corners = person.faces[picture.triangle[hit]]
    values = np.einsum("pk,pkc->pc", picture.weights[hit], person.part_weight[corners])
    expected = np.where(
        values[:, 1] > 0.5, -1, np.clip(np.rint(values[:, 0]), 0, 3)
    )  # forearm, or segment 0 palm .. 3 last bone
    bones = bones.astype(int)[hit]
    found = np.where(bones == 16, -1, np.where(bones == 0, 0, (bones - 1) % 3 + 1))
    assert (expected == found).mean() > 0.998
    assert set(np.unique(parts)) - {0} <= {1, *range(18, 34)} and len(np.unique(parts)) > 14


def test_part_ids_are_rhd_s():
    left, right = render.part_ids("left"), render.part_ids("right")
    assert left.tolist() == [
        17,
        4,
        3,
        2,
        7,
        6,
        5,
        10,
        9,
        8,
        13,
        12,
        11,
        16,
        15,
        14,
        1,
    ]  # palm, then base to tip of each finger, forearm
    assert (right[:16] == left[:16] + 16).all() and right[16] == 1


def test_shadow_falls_behind_and_not_before_and_not_beside():
    mesh = ball([0, 0, 500], 30)[0]
    direction = np.array([1, -1, 0]) / 2**0.5
    shadow = shade.cast_shadow(direction, mesh.vertices, mesh.faces, mesh.vertices)
    spots = [
        (-80.0, 80.0, 500.0),
        (80.0, -80.0, 500.0),
        (80.0, 80.0, 500.0),
        (-21.5, 21.5, 500.0),
    ]  # behind, before, beside, own night side
    assert [shade.sunlight(*shadow, *spot, 2.0) for spot in spots] == [0, 1, 1, 0]


def test_outlines_are_softened_and_surfaces_are_not():
    image = np.random.default_rng(0).random((40, 40, 3)).astype(np.float32)
    smooth = np.full((40, 40), 1 / 500, np.float32)
    soft = image.copy()
    shade.soften_outlines(soft, smooth)
    np.testing.assert_array_equal(soft, image)
    smooth[:, 20:] = 1 / 600
    shade.soften_outlines(soft, smooth)
    changed = np.abs(soft - image).max(2) > 0
    tent = cv2.filter2D(image, -1, np.outer([1, 2, 1], [1, 2, 1]) / 16)
    np.testing.assert_allclose(soft[1:-1, 19:21], tent[1:-1, 19:21], atol=1e-6)
    assert changed[1:-1, 19:21].all() and not changed[:, :19].any() and not changed[:, 21:].any()

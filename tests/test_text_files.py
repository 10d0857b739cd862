"Text as people's systems write it: with a mark of its encoding, whatever the system's own encoding is."

import codecs
import json

import numpy as np

from handlab.core import read_json
from handlab.data import bighand, dexter_object
from handlab.data.bighand import BigHand


def marked(path):
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())


def test_bighands_text_may_begin_with_a_mark(tmp_path):
    bighand.write_drawn(tmp_path)
    plain = [sample.joints for sample in BigHand(tmp_path, "all")]
    for path in (tmp_path / bighand.ANNOTATION).rglob("*.txt"):
        marked(path)
    np.testing.assert_array_equal([sample.joints for sample in BigHand(tmp_path, "all")], plain)


def test_dexters_text_may_begin_with_a_mark():
    points = np.arange(24.0).reshape(8, 3) + 0.5
    text = codecs.BOM_UTF8 + f"{dexter_object.format_line(points)}\r\n".encode()
    np.testing.assert_array_equal(dexter_object.parse_annotation("a", text, 3), points[None])


def test_json_may_begin_with_a_mark(tmp_path):
    (tmp_path / "source.json").write_text(json.dumps({"source": "sim-rhd"}), encoding="utf-8-sig")
    assert read_json(tmp_path / "source.json") == {"source": "sim-rhd"}

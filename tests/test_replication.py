"The replication report: links that exist, metadata by the template, and verdicts that follow the table."

import re

import numpy as np
import pandas as pd
import pytest
import yaml

from handlab.core import project_root, read_json
from handlab.pages import replication
from handlab.pages.front import BEGIN, END, finding_sentences, front_block, replaced
from handlab.results.claims import World, read_headlines
from handlab.results.statistics import FAILS, HOLDS, LACKS_POWER, NOT_RUN

ROOT = project_root()
SHIPPED = any((ROOT / "runs/shipped").glob("train_*/metrics.json"))


def test_every_pointer_of_the_checklist_exists():
    text = (ROOT / "replication/checklist.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 30
    assert not [link for link in links if not (ROOT / "replication" / link).exists()]


def test_the_metadata_have_the_templates_fields_and_no_invented_facts():
    found = yaml.safe_load((ROOT / "replication/metadata.yaml").read_text(encoding="utf-8"))
    mandatory = {"title", "authors", "affiliations", "keywords", "code", "data", "replication", "abstract"}
    mandatory |= {
        "bibliography",
        "type",
        "domain",
        "language",
        "review",
        "contributors",
        "dates",
        "article",
        "journal",
    }
    assert set(found) == mandatory and found["type"] == "Replication" and found["title"].startswith("[Re] ")
    bib = (ROOT / "replication" / found["bibliography"]).read_text(encoding="utf-8")
    assert [f"{{{each['bib']}," in bib for each in found["replication"]] == [True, True]
    unknown = [
        value for name in ("dates", "article", "review") for each in found[name] for value in each.values()
    ]
    assert set(unknown) == {None}


def table_of(*verdicts):
    rows = [{"paper": "privileged_depth", "section": "4.1", "verdict": verdict} for verdict in verdicts]
    return pd.DataFrame(rows, index=read_headlines().index[: len(verdicts)])


@pytest.mark.parametrize(
    "verdicts, mark",
    [
        ((HOLDS, HOLDS, FAILS), "[Re] "),
        ((FAILS, LACKS_POWER), "[¬Re] "),
        ((NOT_RUN,), "[Re, without a verdict yet] "),
        ((HOLDS, NOT_RUN, NOT_RUN), "[Re, without a verdict yet] "),
    ],
)
def test_the_title_follows_the_headline_verdicts(verdicts, mark):
    assert replication.title_of(table_of(*verdicts)).startswith(mark)


def test_the_scope_counts_the_claims_of_a_part():
    row = replication.scope_table(table_of(HOLDS, FAILS, NOT_RUN)).iloc[0]
    assert (row["claims"], row[HOLDS], row[FAILS], row["replicated"]) == (3, 1, 1, "in part")


def test_without_runs_the_article_says_so(tmp_path):
    text = replication.write_article(World(str(tmp_path / "runs/quick")), tmp_path)
    assert text == (tmp_path / "replication.md").read_text(encoding="utf-8")
    assert text.startswith("# [Re, without a verdict yet] ")
    assert (
        "kinds of runs are not trained yet; " in text
        and "no finished run in" in text
        and "### Sizes" not in text
    )


def test_the_article_cites_what_the_metadata_name():
    found = yaml.safe_load((ROOT / "replication/metadata.yaml").read_text(encoding="utf-8"))
    references = " ".join(replication._REFERENCES.split())
    assert [each["cite"] in references for each in found["replication"]] == [True, True]


@pytest.mark.skipif(not SHIPPED, reason="no run is shipped yet")
def test_the_article_of_the_shipped_runs_states_their_sizes_and_the_metadatas_mark():
    text = replication.article(World("runs/shipped"))
    found = yaml.safe_load((ROOT / "replication/metadata.yaml").read_text(encoding="utf-8"))
    assert text.startswith("# [¬Re]") == found["title"].startswith("[¬Re]")
    first = read_json(next((ROOT / "runs/shipped").glob("train_aligned-*/metrics.json")))["settings"]
    row = re.search(r"^\| train_aligned \| crop \| (\d+) \| 256 \|$", text, re.M)
    assert row and int(row[1]) == first["crop"]


def test_the_answers_come_first_and_follow_the_verdicts():
    ids = ["pi-3d-rhd", "pi-3d-rhd-same-steps", "depth-3d-rhd", "s1-s2", "s1-s4"]
    verdicts = [HOLDS, FAILS, HOLDS, LACKS_POWER, LACKS_POWER]
    rows = [
        {"verdict": verdict, "seeds needed": np.nan, "p": 0.5, "also together": ""} for verdict in verdicts
    ]
    table = pd.DataFrame(rows, index=ids).assign(
        ours=[1.0, -0.5, 7.0, 0.1, 0.2], low=[0.6, -0.7, 6.0, -1.0, -1.0]
    )
    table["high"] = [1.4, -0.3, 8.0, 1.2, 1.4]
    first, second, third, *_, last = finding_sentences(table, [], "1 of 2 runs are not trained yet.")
    assert first.startswith(
        "**Paper 1, privileged depth, at equal steps: does not hold.** Depth while training does not"
    )
    assert (
        "is 0.50 mm higher than that of RGB Net trained for as many steps (95 % interval 0.30 to 0.70)"
        in first
    )
    assert "is 1.00 mm lower than that of RGB Net, which trained for fewer steps" in first
    assert second.startswith(
        "**Paper 2, aligned latent spaces: lacks power.** The mean 3D error of S4 and that of S1 cannot"
    )
    assert re.fullmatch(
        r"Other headline claims\. \*holds\*: Depth is .*\. \*lacks power\*: Further decoders .*\.", third
    )
    assert last == "1 of 2 runs are not trained yet."


def test_the_front_block_says_what_is_not_trained(tmp_path):
    block = front_block(tmp_path / "runs/quick", 3)
    assert re.search(r"\d+ of \d+ kinds of runs are not trained yet\.", block)  # the pages name them
    assert (
        "trained up to 3 times" in block
        and "1. **Paper 1, privileged depth, at equal steps: not run.**\n" in block
    )
    for name in ("README.md", "nbs/index.ipynb"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert text.count(BEGIN) == text.count(END) == 1 and block in replaced(text, block)


def test_within_a_notebook_the_article_is_below_its_title():
    text = replication.below_title("# Title\n\n## Part\n\na # b\n#tag\n### Sub")
    assert text == "## Title\n\n### Part\n\na # b\n#tag\n#### Sub"

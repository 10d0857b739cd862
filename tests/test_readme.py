"The front pages: their length, their links and commands, and every number they state about our results."

import json
import re
import tomllib

import pytest

from handlab.core import project_root

ROOT = project_root()
README = (ROOT / "README.md").read_text(encoding="utf-8")
INDEX = "\n".join(
    "".join(cell["source"])
    for cell in json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]
    if cell["cell_type"] == "markdown"
)


SHIPPED = any((ROOT / "runs/shipped").glob("train_*/metrics.json"))


@pytest.mark.skipif(not SHIPPED, reason="no run is shipped yet")
def test_what_was_found_is_what_the_shipped_runs_say():
    from handlab.graph.plan import shipped_seeds
    from handlab.pages.front import front_block, in_notebooks

    found = front_block(seeds=shipped_seeds())
    for block, text in ((found, README), (in_notebooks(found), INDEX)):
        lines = block.splitlines()
        assert len(lines) > 15 and not [line for line in lines if line not in text]
    counts = [re.sub(r"^\d+\. ", "", line) for line in found.splitlines() if "claims of both papers" in line]
    saved = "\n".join(shown_texts(ROOT / "nbs/replication.ipynb"))
    assert len(counts) == 1 and counts[0] in saved, "call make papers: it saves what the pages show"


def test_the_readme_is_short():
    "What was found, written by make papers, is counted apart."
    before, found = README.split("<!--findings-->")
    found, after = found.split("<!--/findings-->")
    assert len((before + after).split()) <= 700 and len(found.split()) <= 700


def shown_texts(path):
    "A notebook's cells of Markdown; of those that a person runs also the Markdown that was put out."
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            yield "".join(cell["source"])
        for output in cell.get("outputs", ()) if path.parent == ROOT / "nbs" else ():
            yield "".join(output.get("data", {}).get("text/markdown", ""))


def markdown():
    "(file, text) of the guides and of every notebook's cells and outputs of Markdown."
    for path in (*ROOT.glob("*.md"), *ROOT.glob("figures/**/*.md"), *ROOT.glob("replication/*.md")):
        yield path, path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            yield from ((path, text) for text in shown_texts(path))


def test_every_relative_link_exists():
    "A heading that a link names must be there, too."
    missing, found = [], 0
    for path, text in markdown():
        for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"\$[^$\n]+\$|`[^`\n]+`", "", text)):
            name, _, heading = link.partition("#")
            if link.startswith(("http:", "https:", "mailto:", "attachment:", "data:")):
                continue
            found += 1
            target = path.parent / name if name else path
            if not target.exists() or (heading and not has_heading(target, heading)):
                missing.append(f"{path.relative_to(ROOT)}: {link}")
    assert found > 400 and not missing


def has_heading(path, heading):
    headings = re.findall(r"^#+ (.+)$", "\n".join(text for file, text in markdown() if file == path), re.M)
    return heading in {each.replace(" ", "-") for each in headings}  # as JupyterLab writes it


def saved_texts(path):
    "The texts among a notebook's saved outputs."
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", ()):
            yield "".join(output.get("text", ""))
            yield from ("".join(text) for kind, text in output.get("data", {}).items() if "text" in kind)


def test_no_saved_output_names_a_folder_of_a_machine():
    folder = re.compile(r"(?<![\w.])/(?:tmp|home|root|work|Users|var)/\S*")
    notebooks = [path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts]
    found = [(path.name, folder.findall(text)) for path in notebooks for text in saved_texts(path)]
    assert len(found) > 500 and not [each for each in found if each[1]]


def test_saved_outputs_are_short_and_without_faults():
    "No error, nothing on stderr, no wall of lines, no table longer or wider than a page, no `np.float64(`."
    found, wrong = 0, []
    for path in (path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", ()):
                found += 1
                wrong += [f"{path.name}: {fault}" for fault in faults_of(output)]
    assert found > 300 and not wrong


def faults_of(output):
    "What keeps a reader from a saved output."
    data = output.get("data", {})
    text = "".join(output.get("text", "")) + ("".join(data.get("text/plain", "")) if len(data) == 1 else "")
    if output["output_type"] == "error" or "Traceback" in text or output.get("name") == "stderr":
        yield f"an error or a warning: {text[:60]!r}"
    if text.count("\n") > 60:
        yield f"{text.count(chr(10))} lines of text"
    if re.search(r"np\.(float|int|uint|True|False)", text):
        yield f"numbers as NumPy names them: {text[:60]!r}"
    if (rows := "".join(data.get("text/html", "")).count("<tr")) > 50:
        yield f"a table of {rows} rows"
    header = re.search(r"<thead>.*?</tr>", "".join(data.get("text/html", "")), re.S)
    columns = header[0].count("<th") if header else 0
    for rule in re.findall(r"^[|\s:-]*-{3}[|\s:-]*$", "".join(data.get("text/markdown", "")), re.M):
        columns = max(columns, rule.count("|") - 1)
    if columns > 14:
        yield f"a table of {columns} columns"


def test_faults_of_outputs_are_found():
    lines = {"output_type": "stream", "name": "stdout", "text": ["step\n"] * 61}
    row = "<table><thead><tr>" + "<th></th>" * 15 + "</tr></thead></table>"
    table = {"output_type": "display_data", "data": {"text/html": [row], "text/plain": ["a table"]}}
    markdown = {
        "output_type": "display_data",
        "data": {"text/markdown": "|a" * 15 + "|\n" + "|---" * 15 + "|\n"},
    }
    warned = {"output_type": "stream", "name": "stderr", "text": ["UserWarning"]}
    failed = {"output_type": "error", "ename": "KeyError", "evalue": "", "traceback": []}
    named = {"output_type": "execute_result", "data": {"text/plain": ["{'S1': np.float64(55.62)}"]}}
    long = {"output_type": "execute_result", "data": {"text/html": ["<tr></tr>"] * 51, "text/plain": [""]}}
    every = (lines, table, markdown, warned, failed, named, long)
    assert [len(list(faults_of(each))) for each in every] == [1] * 7
    assert not list(faults_of(lines | {"text": ["step\n"] * 60}))


def test_every_row_of_a_table_has_its_columns():
    "One more `|`, such as that of q(z|x), and some readers show the whole table as text."
    wrong = []
    for path, text in markdown():
        for table in re.findall(r"(?:^\|.*\n?)+", text, re.M):
            rows = [len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()]
            wrong += [f"{path.name}: {table[:60]!r}"] if len(set(rows)) > 1 else []
    assert not wrong


def test_every_notebook_of_the_house_is_linked_from_the_index():
    notebooks = {path.relative_to(ROOT / "nbs").as_posix() for path in (ROOT / "nbs").rglob("*.ipynb")}
    notebooks = {name for name in notebooks if ".ipynb_checkpoints" not in name} - {"index.ipynb"}
    assert notebooks == notebooks & set(re.findall(r"\]\(([^)\s]+\.ipynb)\)", INDEX))


def test_every_command_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z]+)", README))
    assert named and named <= targets
    papermill = re.findall(r"papermill (?:--help-notebook )?(nbs/\S+)(.*)", README)
    assert papermill
    for notebook, words in papermill:
        cells = json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]
        tagged = (cell for cell in cells if "parameters" in cell["metadata"].get("tags", ()))
        parameters = "".join(next(tagged)["source"])
        for name in re.findall(r"-p (\w+)", words):
            assert re.search(rf"^{name}\b", parameters, re.M), f"{notebook} has no parameter {name}"


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    guide = (ROOT / "INSTALL.md").read_text(encoding="utf-8")
    reasons = guide.split("## Why each package")[1].split("\n## ")[0]
    for name in (re.match(r"[\w-]+", need)[0] for need in needs):
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", reasons), f"{name} has no reason in INSTALL.md"

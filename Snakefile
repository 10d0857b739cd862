# The graph of runs: data -> trainings x datasets x strategies x seeds -> the papers' pages with their figures -> the manifest.
#
#   make figures [PROFILE=smoke|quick|long|full] [SEEDS=n] [REAL=folder]       the usual way: all cores and GPUs of this machine
#   make papers                                                           the pages of the shipped runs alone
#   snakemake --cores 2 --config profile=quick seeds=1                    the same without make (options: profiles/default)
#   snakemake --cores 2 runs/quick/train_pi-sim-stb-seed0/metrics.json    one run of it
#
# nbs/results/00_catalogue.ipynb lists the runs, nbs/graph explains the rest. Sources are no inputs here: a rule's `code` is
# a fingerprint of the meaning of its notebook and of all modules that this imports, so that neither a fresh clone's file
# dates nor a comment make anything again.
import sys

from snakemake.logging import logger

from handlab.graph import plan
from handlab.graph.code import code_fingerprint, notebook_file
from handlab.graph.execute import gpu_count
from handlab.graph.pace import measured_costs
from handlab.graph.progress import Errors, Progress, Tally, failure_lines, start_line, success_line
from handlab.results.catalogue import run_folder, run_parameters
from handlab.results.runs import make_command

if workflow.is_main_process:
    logger.addHandler(Errors())
PROFILE, SEEDS, REAL = config.get("profile", "quick"), int(config.get("seeds", 1)), str(config.get("real", ""))
TRAININGS, PAGES = plan.whole_graph(PROFILE, SEEDS, REAL)
DATA = plan.data_names(PROFILE, SEEDS, REAL)
MADE = plan.files_made(PROFILE, SEEDS, REAL)
FIGURES = plan.figures_folder(PROFILE)
CALL = [sys.executable, "-m", "handlab.graph.run"]  # quoted in the shell (:q): folders may have any name
OPTIONS = ["--profile", PROFILE, "--seeds", SEEDS, *(["--real", REAL] if REAL else [])]
FRONT = [f"runs/{PROFILE}/front.done"] if PROFILE == plan.PAPERS else []
GPUS = int(config.get("gpus", gpu_count()))  # of this machine, or of each of a cluster's jobs
DATA_CODE = code_fingerprint("handlab/train/experiment.py")


def notebook_code(run): return code_fingerprint(notebook_file(run.notebook))
def executed(run): return f"{run_folder(run, PROFILE)}/{run.notebook}.ipynb"
def text_log(name): return f"runs/{PROFILE}/logs/{name}.log"
def data_threads():  # two preparations at a time: while one starts or writes its last, the other draws
    return 1 if PROFILE == "smoke" else max(1, workflow.cores // 2) if workflow.cores else 8


rule all:
    default_target: True
    input: MADE["manifest"], [MADE[run.name] for run in TRAININGS], FRONT


for name, needs in DATA.items():
    rule:
        name: name
        output: MADE[name]
        log: text_log(name)
        params: code=DATA_CODE, wanted=needs
        threads: data_threads()
        priority: 10000
        shell: "{CALL:q} data {rule} {OPTIONS:q} --output {output} > {log} 2>&1"  # {rule}: `name` would be that of the last round


for run in TRAININGS:
    rule:
        name: run.name
        input: MADE[plan.data_name(run.dataset)]
        output: MADE[run.name]
        log: notebook=executed(run), text=text_log(run.name)
        params: code=notebook_code(run), given=plan.without_roots(run_parameters(run, PROFILE))
        threads: 1 if GPUS else run.threads
        resources: gpu=1 if GPUS else 0
        priority: 10 + int(10 * run.minutes * run.threads)  # the longest first
        shell: "{CALL:q} run {rule} {OPTIONS:q} > {log.text} 2>&1"


for page in PAGES:
    rule:
        name: page.name
        input:
            [MADE[run.name] for run in TRAININGS if run.notebook in plan.PAGES.get(page.notebook, ())],
            [MADE[other.name] for other in PAGES if other.notebook in plan.PAGES_BEFORE.get(page.notebook, ())],
            plan.shipped_files(page) if PROFILE == plan.PAPERS else []
        output: MADE[page.name]
        log: notebook=executed(page), text=text_log(page.name)
        params: code=notebook_code(page), given=plan.without_roots(plan.page_parameters(page, PROFILE))
        resources: gpu=1 if GPUS else 0
        priority: 1
        shell: "{CALL:q} run {rule} {OPTIONS:q} > {log.text} 2>&1"


rule manifest:
    input: [MADE[page.name] for page in PAGES]
    output: MADE["manifest"]
    log: text_log("manifest")
    params:
        code=code_fingerprint("handlab/pages/manifest.py"),
        command=make_command(PROFILE, SEEDS, bool(REAL))
    shell: "mkdir -p {FIGURES} && {sys.executable:q} -m handlab.pages.manifest {FIGURES} --command {params.command:q} --json {output} > {log} 2>&1"


if PROFILE == plan.PAPERS:
    rule front:  # what README.md and the index say of the results, and the outputs saved in the pages
        input: [MADE[page.name] for page in PAGES]
        output: touch(FRONT)
        log: text_log("front")
        params: code=code_fingerprint("handlab/pages/front.py")
        shell: "{sys.executable:q} -m handlab.pages.front --seeds {SEEDS} > {log} 2>&1"


# One readable line per run that has ended, instead of Snakemake's own.
if workflow.is_main_process:
    RUNS = [*TRAININGS, *PAGES]
    COSTS = {**dict.fromkeys(DATA, 1.), **{run.name: run.minutes * run.threads for run in RUNS}, "manifest": .1, **dict.fromkeys(["front"] * len(FRONT), .3)}
    FILES = {name: [text_log(name)] for name in COSTS} | {run.name: [executed(run), text_log(run.name)] for run in RUNS}
    PLACES = max(1, GPUS) if GPUS else workflow.cores or 1
    WIDTHS = {} if GPUS else {**dict.fromkeys(DATA, data_threads()), **{run.name: run.threads for run in RUNS}}
    TALLY = Tally(COSTS, PLACES, plan.needed_names(PROFILE, SEEDS, REAL), WIDTHS)
    logger.addHandler(Progress(TALLY, FILES, PROFILE))

onstart:
    if PROFILE != plan.PAPERS: TALLY.costs.update(measured_costs(PROFILE, SEEDS, REAL, PLACES, TALLY.expected))
    print(start_line(TALLY, PROFILE), flush=True)
onsuccess: print(success_line(TALLY, FIGURES))
onerror: print(failure_lines(TALLY, FILES))

# The graph of runs: data -> trainings x datasets x strategies x seeds -> the papers' pages with their figures -> the manifest.
#
#   make figures [PROFILE=smoke|quick|full] [SEEDS=n] [REAL=folder]   the usual way: all cores, all GPUs of this machine; REAL: on the real sets
#   snakemake --cores 2 --config profile=quick seeds=1           the same without make (flags: profiles/default/config.yaml)
#   snakemake --cores 2 runs/quick/train_pi-sim-stb-seed0/metrics.json    one run of it
#
# Which runs there are is said in nbs/results/03_runs.ipynb, what they depend on in nbs/graph/. Sources are no inputs here: a rule's
# `code` is a fingerprint of what its notebook and all modules it imports mean, so that neither a fresh clone's file dates nor a comment make anything again.
import shlex
import sys

from snakemake.logging import logger

from handlab.graph import run as graph
from handlab.graph.code import code_fingerprint, notebook_file
from handlab.graph.progress import Errors, Progress
from handlab.results.runs import make_command, page_folder, run_folder, run_parameters

if workflow.is_main_process: logger.addHandler(Errors())
PROFILE, SEEDS, REAL = config.get("profile", "quick"), int(config.get("seeds", 1)), str(config.get("real", ""))
TRAININGS, PAGES = graph.whole_graph(PROFILE, SEEDS, REAL)
DATA = graph.data_names(PROFILE, SEEDS, REAL)
FIGURES = graph.figures_folder(PROFILE)
CALL = f"{sys.executable} -m handlab.graph.run"
OPTIONS = f"--profile {PROFILE} --seeds {SEEDS}" + (f" --real {shlex.quote(REAL)}" if REAL else "")
MANIFEST = page_folder("manifest", bool(REAL))
GPUS = int(config.get("gpus", graph.gpu_count()))  # of this machine, or of each of a cluster's jobs
THREADS = "" if GPUS else "OMP_NUM_THREADS=1"  # on a CPU a training is one thread, or several processes of one thread each
DATA_CODE = code_fingerprint("handlab/train/experiment.py")


def folder(run): return run_folder(run, PROFILE)
def data_file(name): return f"runs/{PROFILE}/data/{name}.json"
def text_log(name): return f"runs/{PROFILE}/logs/{name}.log"
def priority(run): return 10 + int(10 * run.minutes * run.threads)  # the longest first


rule all:
    default_target: True
    input: f"runs/{PROFILE}/{MANIFEST}.json", [f"{folder(run)}/metrics.json" for run in TRAININGS]


for name, wanted in DATA.items():
    rule:
        name: name
        output: data_file(name)
        log: text_log(name)
        params: code=DATA_CODE, wanted=wanted
        threads: 1 if PROFILE == "smoke" else max(1, workflow.cores // 2) if workflow.cores else 8  # two at a time: while one starts or writes its last the other draws
        priority: 10000
        shell: "{CALL} data {rule} {OPTIONS} --output {output} &> {log}"  # `name` itself would be that of the last round


for run in TRAININGS:
    rule:
        name: run.name
        input: data_file(graph.data_name(run.dataset))
        output: f"{folder(run)}/metrics.json"
        log: notebook=f"{folder(run)}/{run.notebook}.ipynb", text=text_log(run.name)
        params: code=code_fingerprint(notebook_file(run.notebook)), given=graph.what_matters(run_parameters(run, PROFILE))
        threads: 1 if GPUS else run.threads
        resources: gpu=1 if GPUS else 0
        priority: priority(run)
        shell: "{THREADS} {CALL} run {rule} {OPTIONS} &> {log.text}"


for page in PAGES:
    rule:
        name: page.name
        input:
            [f"{folder(run)}/metrics.json" for run in TRAININGS if run.notebook in graph.PAGES[page.notebook]],
            [f"{folder(other)}/finished.json" for other in PAGES if other.notebook in graph.PAGES_BEFORE.get(page.notebook, ())]
        output: f"{folder(page)}/finished.json"
        log: notebook=f"{folder(page)}/{page.notebook}.ipynb", text=text_log(page.name)
        params: code=code_fingerprint(notebook_file(page.notebook)), given=graph.what_matters(graph.page_parameters(page, PROFILE))
        resources: gpu=1 if GPUS else 0
        priority: 1
        shell: "{THREADS} {CALL} run {rule} {OPTIONS} &> {log.text}"


rule manifest:
    input: [f"{folder(page)}/finished.json" for page in PAGES]
    output: f"runs/{PROFILE}/{MANIFEST}.json"
    log: text_log(MANIFEST)
    params: code=code_fingerprint("handlab/pages/manifest.py"), command=make_command(PROFILE, SEEDS, bool(REAL))
    shell: "{sys.executable} -m handlab.pages.manifest {FIGURES} --command '{params.command}' --json {output} &> {log}"


# One readable line for each run that has ended, instead of Snakemake's own.
if workflow.is_main_process:
    SAYS = Progress(
        {**dict.fromkeys(DATA, 1.), **{run.name: run.minutes * run.threads for run in (*TRAININGS, *PAGES)}, "manifest": .1},
        {**{name: [text_log(name)] for name in (*DATA, "manifest")}, **{run.name: [f"{folder(run)}/{run.notebook}.ipynb", text_log(run.name)] for run in (*TRAININGS, *PAGES)}},
        PROFILE, max(1, GPUS) if GPUS else workflow.cores or 1)
    logger.addHandler(SAYS)

onstart: SAYS.on_start()
onsuccess: SAYS.on_success(FIGURES)
onerror: SAYS.on_failure()

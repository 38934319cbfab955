"""What the page says of joblib and scikit-learn is true, with the real ones."""

from __future__ import annotations

import pytest

from library_programs import programs_of, run, said

pytestmark = [pytest.mark.integrations, pytest.mark.timeout(300)]  # imports of a cold disk

PAGE = "run-joblib-and-scikit-learn.md"
QUIETLY = "print(len(ipcmap.active_children()) > 0)\nipcmap.integrations.joblib.shutdown()\n"


PROGRAMS = programs_of(PAGE)
_, SEARCH, _ = PROGRAMS


@pytest.mark.parametrize("program", PROGRAMS, ids=["loop", "search", "death"])
def test_a_program_of_the_page_prints_what_it_says(program: str, engine: str) -> None:
    """And ends, though its workers were kept."""
    result = run(program, engine)
    assert (result.stdout, result.stderr, result.returncode) == (said(program), "", 0)


def test_a_search_finds_what_it_finds_alone(engine: str) -> None:
    """The same scores to the last bit, from workers."""
    program = SEARCH + (
        "alone = GridSearchCV(SVC(), {'C': [0.1, 1, 10]}, cv=3).fit(features, classes)\n"
        "name = 'mean_test_score'\n"
        "print((alone.cv_results_[name] == search.cv_results_[name]).all())\n"
        "import ipcmap\n"
    )
    result = run(program + QUIETLY, engine)
    lines = result.stdout.splitlines()
    assert (lines[1:], result.stderr, result.returncode) == (["True", "True"], "", 0)


def test_workers_have_none_of_the_threads_of_openmp(engine: str) -> None:
    """A fit in the parent, over which a worker that is forked later hangs, does no harm."""
    program = (
        "import ipcmap.integrations.joblib\n"
        "from joblib import parallel_config\n"
        "from sklearn.datasets import load_iris\n"
        "from sklearn.ensemble import HistGradientBoostingClassifier\n"
        "from sklearn.model_selection import cross_val_score\n"
        "ipcmap.integrations.joblib.register()\n"
        "features, classes = load_iris(return_X_y=True)\n"
        "model = HistGradientBoostingClassifier(max_iter=3)\n"
        "model.fit(features, classes)\n"
        "with parallel_config('ipcmap', n_jobs=2, inner_max_num_threads=2):\n"
        "    print(len(cross_val_score(model, features, classes, cv=3)))\n"
    )
    result = run(program, engine)
    assert (result.stdout, result.stderr, result.returncode) == ("3\n", "", 0)

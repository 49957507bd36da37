"""The table of LatentPatch goes on from the rows that are there, and says which orders hold."""

from tests.benchmarks.latentpatch_table import METHODS, measured, orders, table, trials

KD = {"random 1×1": 1200, "random 4×4": 600, "ω 2, S = 5": 640, "ω 6, S = 5": 330, "ω 6, S = 1": 270, "ω 6, S = 1, k = 10": 371}


def value(name, number, seed):
    return {"kd": KD.get(name, 200), "fd": 1.0, "precision": 0.5, "recall": 0.5, "diversity": 1.0, "novelty": 1.1, "dark": 0.1}


def test_rows_are_measured_once_and_saved_at_once():
    todo, facts, saved = list(trials(2, False)), {"autoencoder": "a"}, []
    rows = measured([], facts, todo, 2000, value, lambda rows: saved.append(len(rows)))
    assert saved == [*range(1, len(todo) + 1), len(todo)] and {row["num_sources"] for row in rows} == {16, 128, 1000, 2000}
    asked = []
    assert orders(rows[:8]) == {} and "random" in table(rows[:8])
    again = measured(rows[:-3], facts, todo, 2000, lambda *key: asked.append(key) or value(*key), lambda rows: None)
    assert again == rows and len(asked) == 3
    with_transformer, last = measured(rows, facts, list(trials(2, True)), 2000, value, lambda rows: None), []
    assert measured(with_transformer, facts, todo, 2000, value, last.append) == rows and len(last[-1]) == len(rows) + 2
    measured(rows, {"autoencoder": "b"}, todo, 2000, lambda *key: asked.append(key) or value(*key), lambda rows: None)
    assert len(asked) == 3 + len(todo)


def test_orders_and_table_follow_the_rows():
    rows = measured([], {}, list(trials(3, True)), 2000, value, lambda rows: None)
    assert all(orders(rows).values()) and len(orders(rows)) == 5
    text = table(rows)
    assert "| 1,000 | ω 6, S = 1 | 3 | 270 ± 0 |" in text and text.count("yes") == 5 and "transformer" in text
    assert all(name in text for name in METHODS)
    for row in rows:
        row["kd"] = 500
    assert not all(orders(rows).values()) and "NO" in table(rows)

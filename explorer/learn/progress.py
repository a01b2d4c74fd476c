"""A person's progress: Elo ratings, Leitner boxes, which questions come next, and the result sheet. One small JSON that lives in the browser.

Elo: the person has a rating, and each concept an offset to it, both from 0 offset at START. A question's difficulty is its level's. The expected
score is 1 / (1 + 10^((difficulty - rating) / 400)); after an answer both move by K times (score - expected), the rating with half of K. K is
larger for the first answers. Leitner: a right answer moves a question one box up, a wrong one back to the first; box b comes back after 2^b days.
"""

from __future__ import annotations

import datetime
import math
import random
from collections import defaultdict
from typing import Any

from explorer.learn.answers import brier
from explorer.learn.bank import Area, Question

START, K_EARLY, K_LATE, EARLY = 1100.0, 64.0, 24.0, 15
DIFFICULTY = {"junior": 1000.0, "mid": 1200.0, "senior": 1400.0}
SPREAD = (-150.0, -50.0, 0.0, 50.0, 150.0)  # of a set's five difficulties around the person's rating
BOXES, RIGHT, LOG = 5, 0.75, 200
State = dict[str, Any]


def fresh() -> State:
    """The state of a person who has answered nothing."""
    return {"version": 1, "rating": START, "answers": 0, "concepts": {}, "boxes": {}, "log": [], "days": {}}


def checked(state: Any) -> State:
    """The state that a browser sent, or a fresh one when it is none: wrong types, unknown version, or longer than it can have become."""
    blank = fresh()
    if not isinstance(state, dict) or state.get("version") != 1:
        return blank
    if any(type(state.get(key)) is not type(value) and not isinstance(state.get(key), int | float) for key, value in blank.items()):
        return blank
    if any(not isinstance(state[key], dict) for key in ("concepts", "boxes", "days")) or not isinstance(state["log"], list):
        return blank
    if not math.isfinite(state["rating"]) or max(len(state["log"]), len(state["boxes"]), len(state["concepts"]), len(state["days"])) > 4 * LOG:
        return blank
    entries = all(isinstance(e, dict) and {"id", "area", "score", "confidence"} <= e.keys() and isinstance(e["score"], int | float) for e in state["log"])
    boxes = all(isinstance(b, list) and len(b) == 2 and isinstance(b[0], int) and isinstance(b[1], int) for b in state["boxes"].values())
    return state if entries and boxes and all(isinstance(v, int | float) for v in state["concepts"].values()) else blank


def expected(rating: float, difficulty: float) -> float:
    """The score that a person of this rating is expected to get."""
    return 1 / (1 + 10 ** ((difficulty - rating) / 400))


def rated(state: State, question: Question) -> float:
    """The person's rating for a question: the overall one and the concept's offset."""
    return state["rating"] + state["concepts"].get(question.concept, 0.0)


def answered(state: State, question: Question, score: float, confidence: float | None, day: int) -> State:
    """The state after an answer. score in [0, 1]; confidence: the stated probability of being right, None where none was; day: days since 1970."""
    k = K_EARLY if state["answers"] < EARLY else K_LATE
    move = k * (score - expected(rated(state, question), DIFFICULTY[question.level]))
    concepts = state["concepts"] | {question.concept: state["concepts"].get(question.concept, 0.0) + move}
    box = min(BOXES, state["boxes"].get(question.id, [0, 0])[0] + 1) if score >= RIGHT else 1
    entry = {"id": question.id, "area": question.area, "score": round(score, 3), "confidence": confidence, "day": day}
    return state | {
        "rating": state["rating"] + move / 2, "answers": state["answers"] + 1, "concepts": concepts,
        "boxes": state["boxes"] | {question.id: [box, day + 2 ** (box if score >= RIGHT else 0)]}, "log": [*state["log"], entry][-LOG:],
    }  # fmt: skip


def skipped(state: State, question: Question, day: int) -> State:
    """The state after a question that was not answered: nothing is counted, and it comes back tomorrow."""
    box = state["boxes"].get(question.id, [0, 0])[0]
    return state | {"boxes": state["boxes"] | {question.id: [box, day + 1]}}


def due(state: State, day: int) -> list[str]:
    """Questions whose time has come, those that were wrong first."""
    found = [(box, when, name) for name, (box, when) in state["boxes"].items() if when <= day]
    return [name for _, _, name in sorted(found)]


def next_set(state: State, bank: dict[str, Question], day: int, seed: str, areas: list[str] | None = None, size: int = 5) -> list[str]:
    """Ids of a set of varying difficulty around the person's rating: at most two that are due, the rest new or long unseen, areas mixed."""
    draw = random.Random(seed)
    pool = {name: q for name, q in bank.items() if not areas or q.area in areas}
    chosen = [name for name in due(state, day) if name in pool][:2]
    recent = {entry["id"]: i for i, entry in enumerate(state["log"])}
    for offset in SPREAD:
        if len(chosen) >= size or len(chosen) >= len(pool):
            break
        target = state["rating"] + offset
        used = {pool[name].area for name in chosen}
        kinds = [pool[name].kind for name in chosen]

        def cost(name: str, target: float = target, used: set[str] = used, kinds: list[str] = kinds) -> float:
            question = pool[name]
            seen = 300.0 * (recent[name] + 1) / len(state["log"]) + 150 if name in recent else 0.0
            away = abs(DIFFICULTY[question.level] - state["concepts"].get(question.concept, 0.0) - target)
            return away + seen + 200.0 * (question.area in used) + 80.0 * kinds.count(question.kind) + 120 * draw.random()

        chosen.append(min((name for name in pool if name not in chosen), key=cost))
    return sorted(chosen, key=lambda name: (DIFFICULTY[pool[name].level], name))


def daily(bank: dict[str, Question], date: datetime.date) -> list[str]:
    """Five questions for a date, the same for everybody: two junior, two mid, one senior, of five areas, none to be explained or run."""
    draw = random.Random(f"daily {date.isoformat()}")
    chosen: list[Question] = []
    for level in ("junior", "junior", "mid", "mid", "senior"):
        used = {q.area for q in chosen}
        pool = [q for q in bank.values() if q.level == level and q.area not in used and q.kind not in ("explain", "configure", "order") and not q.metric]
        chosen.append(draw.choice(sorted(pool, key=lambda q: q.id)))
    return [q.id for q in chosen]


def sheet(state: State, areas: dict[str, Area]) -> list[dict[str, Any]]:
    """By area: title, answers, mean score, mean Brier score of the answers with a stated confidence; None where there are none."""
    by_area: dict[str, list[dict]] = defaultdict(list)
    for entry in state["log"]:
        by_area[entry["area"]].append(entry)
    rows = []
    for name, area in areas.items():
        entries = by_area.get(name, [])
        n = len(entries)
        mean = sum(e["score"] for e in entries) / n if n else None
        stated = [brier(e["confidence"], e["score"]) for e in entries if isinstance(e["confidence"], int | float)]
        rows.append({"area": name, "title": area.title, "answers": n, "score": mean, "brier": sum(stated) / len(stated) if stated else None})
    return rows

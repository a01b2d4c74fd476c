"""`plan`: what an architecture needs and which accelerators hold it, from its configuration alone."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from explorer.accelerators import ACCELERATORS, NOTES, OWNED, REACHED, USUAL, Accelerator, Fit, compared, fit, widths
from explorer.commands import Command
from explorer.fallbacks import by_kind, integers, whole
from explorer.families import Architecture, pasted
from explorer.goal import as_text, called, goal, own_width, placement, usual_format
from explorer.layouts import LAYOUTS, LLAMA_CPP
from explorer.planner import Plan, gigabytes, need
from explorer.presets import configurations, presets
from explorer.published import PUBLISHED
from explorer.recorded import on_record
from explorer.records import InputError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="llama-3.1-70b", help="an architecture in assets/architectures, demo, a config.json, or a folder that holds one")
    parser.add_argument("--bits", type=int, help="bits of the weights: 16, 8, 6, 5, 4, 3 or 2; 4 where nothing is said")
    parser.add_argument("--group-size", type=int, help="32, 64 or 128, the usual; 0 for one scale an output channel")
    parser.add_argument(
        "--format",
        choices=["", PUBLISHED, *LAYOUTS],
        help="takes the place of bits and groups; published: as its checkpoint, the usual where that is quantized",
    )
    parser.add_argument("--everything", action="store_true", help="quantize the embedding and the output head too")
    parser.add_argument("--kv-bits", default="16", help="bits of the KV cache: 16, 8, 4, 2, or fp8")
    parser.add_argument("--context", type=int, default=8192, help="tokens of context")
    parser.add_argument("--users", type=int, default=1, help="users at once")
    parser.add_argument("--accelerator", default=USUAL, help="the cards you have, by a name of the list that is printed: their widest format comes first")
    parser.add_argument("--cards", type=int, default=1, help=f"how many of them you have, 1 to {OWNED}")
    parser.add_argument("--price", type=float, help="dollars an hour of one accelerator; else list prices where known")
    parser.add_argument("--reached", type=float, default=REACHED, help="share of the bound that is reached, from which a token's price follows")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def named(model: str) -> Architecture:
    """The architecture of a name or path. Raises InputError."""
    if model in presets():
        return presets()[model]
    path = Path(model).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"There is no architecture or file {model[:60]!r}; choose {', '.join(configurations())}, or give a config.json.")
    try:
        return pasted(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The file {str(path)[:60]!r} cannot be read as text.") from error


def card(name: str) -> Accelerator:
    """The accelerator of a name. Raises InputError."""
    found = next((one for one in ACCELERATORS if one.name.casefold() == name.strip().casefold()), None)
    if found is None:
        raise InputError(f"There is no accelerator {name[:40]!r}; choose {', '.join(one.name for one in ACCELERATORS)}.")
    return found


def first(model: Architecture, plan: Plan, args: argparse.Namespace) -> dict[str, object]:
    """The first answer for the cards one has: in words, and the format and how it lies on them, None where none fits. Raises InputError."""
    device = card(args.accelerator)
    found = placement(model, plan, device, args.cards)
    words = as_text(goal(model, plan, device, args.cards, on_record(), named("demo").parameters / 1e6))
    return {
        "cards": args.cards,
        "accelerator": device.name,
        "words": words,
        "format": found and found.width.name,
        "fit": found and dataclasses.asdict(found.fit),
    }


def asked_for(model: Architecture, args: argparse.Namespace) -> Plan:
    """The plan that the options ask for; of a model that is published quantized as it is, where they name no format. Raises InputError."""
    if args.kv_bits not in ("16", "8", "4", "2", "fp8"):
        raise InputError("The KV cache takes 16, 8, 4, 2 or fp8.")
    float8, form = args.kv_bits == "fp8", args.format
    if form is None:
        form = usual_format(model) if args.bits is None and args.group_size is None and not args.everything else ""
    bits, group = 4 if args.bits is None else args.bits, 128 if args.group_size is None else args.group_size
    return Plan(bits, group, 8 if float8 else int(args.kv_bits), args.context, args.users, everything=args.everything, format=form, kv_float=float8)


def line(found: Fit, reached: float) -> str:
    """One accelerator as text. reached: the share of the bound that the price of a token is for."""
    if not found.count:
        return f"{found.accelerator.name:22s} more than {found.most} needed{found.alone}"
    price = ""
    if found.dollars is not None:
        price = f"  ${found.dollars_hour:,.2f} an hour, ${found.dollars:,.2f} a million decoded tokens at {reached:.0%} of that"
        price += f", ${found.prompt_dollars:,.2f} of prompt"
    users, groups = "user fits" if found.users == 1 else "users fit", "" if found.together == found.count else f" in groups of {found.together}"
    rate = f"decode at most {found.bound:9,.0f} tokens/s ({found.limit}){price}"
    return f"{found.accelerator.name:22s} {found.count:2d} needed{groups}, {found.users:5,d} {users}{', tight' * found.tight}, {rate}"


def sizes(model: Architecture, plan: Plan) -> list[dict[str, object]]:
    """The weights at the widths people compare, with how much of each stays in 16 bits and why, "" where nothing does."""
    return [{"name": name, "weight_bytes": need(model, one).weight_bytes, "note": whole(model, one)} for name, one in compared(plan).items()]


def told(model: Architecture, plan: Plan) -> str:
    """What the widths that are compared and the plan's own need, as two lines of text."""
    found, (own, _), left = need(model, plan), own_width(model), whole(model, plan)
    checkpoint = f", {gigabytes(need(model, dataclasses.replace(plan, **own.plan)).weight_bytes)} as published ({own.name})" if own else ""
    weights = ", ".join(f"{gigabytes(one.weight_bytes)} in {name}" for name, one in widths(model, plan)) + checkpoint
    said = integers(model, plan)
    return (
        f"weights: {weights}{f'. {said}' if said else ''}\n{called(plan)}: {found.bits_per_weight:.3f} stored bits inside the blocks, "
        f"weights {gigabytes(found.weight_bytes)}, KV cache {gigabytes(found.kv_user)} a user and {gigabytes(found.kv)} for {plan.users:,} at "
        f"{plan.context:,} tokens, activations {gigabytes(found.activations)}{f'; {left}' if left else ''}"
    )


def notes(plan: Plan, fits: list[Fit]) -> dict[str, str]:
    """What the table of accelerators rests on, of that which applies."""
    applies = {"compute": True, "tight": any(one.tight for one in fits), "gguf": plan.format in LLAMA_CPP}
    return {name: text for name, text in NOTES.items() if applies[name]}


def work(args: argparse.Namespace) -> None:
    model = named(args.model)
    plan = asked_for(model, args)
    found, fits = need(model, plan), [fit(model, plan, device, args.price, args.reached) for device in ACCELERATORS]
    goal_of = first(model, plan, args)
    if args.json:
        rows = [dataclasses.asdict(one) for one in fits]
        document = {
            "model": model.name,
            "parameters": model.parameters,
            "plan": dataclasses.asdict(plan),
            "need": dataclasses.asdict(found),
            "layout": by_kind(model, plan),
            "note": whole(model, plan),
            "widths": sizes(model, plan),
            "fits": rows,
            "notes": notes(plan, fits),
            "reached": args.reached,
            "goal": goal_of,
        }
        print(json.dumps(document | {"how": "estimated"}, indent=1))
        return
    print(f"{model.name}: {model.parameters:,} parameters ({model.source or 'from its configuration'}); all that follows is estimated")
    print(goal_of["words"])
    print(told(model, plan))
    for one in fits:
        print(line(one, args.reached))
    print(*notes(plan, fits).values(), sep="\n")


COMMAND = Command("plan", "what an architecture needs and which accelerators hold it", arguments, work, stores=False)

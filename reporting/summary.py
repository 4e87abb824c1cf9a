"""The answers that the figures give, computed: nothing here is known beforehand."""

from __future__ import annotations

from .collect import DENSE, Cell, Study

CLOSE = 1.0  # points of top-1 below the dense network that count as free


def answers(study: Study) -> dict[str, list[str]]:
    """Question -> the lines that answer it."""
    return {
        "Which method is best at each size?": [
            line for network in study.networks for line in best_at_each_size(study, network)
        ],
        "Where does pruning pay?": [
            line for network in study.networks for line in where_it_pays(study, network)
        ],
        "Does a separable network suffer more?": separable_against_standard(study),
    }


def points(cell: Cell) -> str:
    """Its accuracy, with the spread over its seeds."""
    spread = cell.spread("top1")
    many = f" ± {spread:.2f} (n={len(cell.runs)})" if spread is not None else ""
    return f"{cell.mean('top1'):.2f}{many} %"


def best_at_each_size(study: Study, network: str) -> list[str]:
    """For each amount pruned: the best way, the next, and the controls it has to beat."""
    lines = []
    cells = [cell for cell in study.of(network) if cell.first.amount]
    for amount in sorted({cell.first.amount for cell in cells}, key=_as_number):
        own = [cell for cell in cells if cell.first.amount == amount]
        ranked = sorted(own, key=lambda cell: -(cell.mean("top1") or 0))
        methods = [cell for cell in ranked if not cell.first.control]
        controls = [cell for cell in ranked if cell.first.control]
        if not methods:
            continue
        best, *others = methods
        line = f"{network}, {amount}: {best.first.series} with {points(best)}"
        if others:
            line += "; then " + ", ".join(f"{c.first.series} {points(c)}" for c in others[:3])
        slim = next((c for c in methods if _smaller(study, c)), None)
        if slim is not None and slim is not best:
            line += f". Best of those with fewer MACs to compute: {slim.first.series}"
        for control in controls:
            peer = _peer(control, methods)
            if peer is not None:
                gain = peer.mean("top1") - control.mean("top1")
                verb = "beats" if gain > 0 else "loses to"
                line += f". {peer.first.series} {verb} {control.first.series} by {abs(gain):.2f}"
                line += _certainty(peer, control)
        lines.append(line + ".")
    return lines


def _peer(control: Cell, methods: list[Cell]) -> Cell | None:
    """What a control controls: the same method without the word that makes it one."""
    words = control.first.series.replace(" from scratch", "").replace(" (equal FLOPs)", "")
    series = " ".join(word for word in words.split() if word != "random")
    return next((cell for cell in methods if cell.first.series == series), None)


def _certainty(one: Cell, other: Cell) -> str:
    """Whether a difference is more than the seeds make."""
    spreads = [cell.spread("top1") for cell in (one, other)]
    if None in spreads:
        return " (one seed: not a result yet)"
    gap = abs(one.mean("top1") - other.mean("top1"))
    return " (within the spread of the seeds)" if gap < sum(spreads) else ""


def where_it_pays(study: Study, network: str) -> list[str]:
    """Per method, the largest cut within a point of the dense network; whether time followed."""
    dense = study.dense(network)
    if dense is None:
        return []
    lines, base, engine = [], dense.mean("top1"), study.engine()
    methods: dict[str, list[Cell]] = {}
    for cell in study.of(network):
        if cell.first.series != DENSE and not cell.first.control:
            methods.setdefault(cell.first.series, []).append(cell)
    for series, cells in methods.items():
        close = [cell for cell in cells if cell.mean("top1") >= base - CLOSE]
        if not close:
            nearest = max(cells, key=lambda cell: cell.mean("top1"))
            lost = base - nearest.mean("top1")
            lines.append(
                f"{network}: no cut by {series} stays within {CLOSE:g} point of the dense "
                f"{points(dense)}; the nearest, {nearest.first.amount}, loses {lost:.2f}."
            )
            continue
        far = max(close, key=lambda cell: theoretical_speedup(study, cell) or 0)
        gain = theoretical_speedup(study, far)
        lines.append(
            f"{network}: {series} can remove {far.first.amount} and stay within {CLOSE:g} point "
            f"({points(far)} against {points(dense)}), with {gain:.2f}x fewer effective MACs"
            + _followed(far, gain, engine)
        )
    return lines


def _followed(cell: Cell, gain: float, engine: str | None) -> str:
    measured = cell.mean("measured_speedup", engine) if engine else None
    if measured is None:
        return "; its time was not measured."
    share = measured / gain
    verdict = "followed" if share >= 0.75 else "followed in part" if measured > 1.05 else "did not"
    alone = cell.mean("latency_speedup", engine)
    return (
        f". Time {verdict}: {measured:.2f}x the images per second, {alone:.2f}x at batch 1 "
        f"({engine})."
    )


def separable_against_standard(study: Study) -> list[str]:
    """Points lost by pruning a separable network, beside those of the standard one."""
    lines = []
    for network in study.networks:
        standard = network.replace(" resnet_de", " resnet")
        if standard == network or standard not in study.networks:
            continue
        lost = {name: _lost(study, name) for name in (standard, network)}
        common = [key for key in lost[standard] if key in lost[network]]
        if not common:
            continue
        pairs = [(lost[standard][key], lost[network][key]) for key in common]
        more = sum(theirs > ours for ours, theirs in pairs)
        told = "; ".join(
            f"{' '.join(key)}: {ours:.2f} and {theirs:.2f}"
            for key, (ours, theirs) in zip(common, pairs, strict=True)
        )
        mean = sum(theirs - ours for ours, theirs in pairs) / len(pairs)
        lines.append(
            f"{network} loses more than {standard} in {more} of {len(pairs)} cases, "
            f"{mean:+.2f} points on average. Points lost, standard and separable: {told}."
        )
    return lines or ["No separable network stands beside a standard one of the same depth here."]


def _lost(study: Study, network: str) -> dict[tuple[str, str], float]:
    dense = study.dense(network)
    if dense is None:
        return {}
    return {
        (cell.first.series, cell.first.amount): dense.mean("top1") - cell.mean("top1")
        for cell in study.of(network)
        if cell is not dense
    }


def theoretical_speedup(study: Study, cell: Cell) -> float | None:
    """How many times fewer MACs than the dense network, if zero weights cost nothing."""
    dense = study.dense(cell.first.network)
    if dense is None:
        return None
    return dense.mean("effective_macs") / cell.mean("effective_macs")


def _smaller(study: Study, cell: Cell) -> bool:
    dense = study.dense(cell.first.network)
    return dense is not None and cell.mean("macs") < 0.99 * dense.mean("macs")


def _as_number(amount: str) -> tuple[float, str]:
    digits = "".join(c for c in amount.split(",")[0] if c.isdigit() or c == ".")
    return (float(digits) if digits.replace(".", "", 1).isdigit() else 0.0), amount

# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne benchmark cost``: what one update takes, in ratios to ``optax.adam`` on one machine.

All optimizers of a row run in one process and take turns, so that whatever else the machine does
hits them alike. Times are of ``scan`` over updates with distinct gradients: nothing of an update
can be moved out of the loop. Temporary bytes come from the compiler; meta-parameters of the learned
rivals are random, which costs the same as trained ones.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mnemosyne
from experiments.benchmarks import layouts, provenance
from experiments.benchmarks.options import Options
from experiments.benchmarks.report import markdown

MAX_TENSORS = 2000
"""More take minutes to compile with any optimizer."""
NOISE = 0.02
"""Standard deviation of what is added to untrained meta-parameters, so that no path is zero."""

Factory = Callable[[], optax.GradientTransformation]


class Candidate(NamedTuple):
    """One optimizer on one network, compiled.

    Attributes:
      run: a few updates, ``(gradients, state, params) -> (state, params)``; reuses its arguments.
      init: makes the state.
      row: what is known before running it.
    """

    run: Any
    init: Callable[[Any], Any]
    row: dict[str, Any]


def optimizers(weights: str) -> dict[str, Factory]:
    """Everything that is measured, by name; Adam first."""
    from mnemosyne.baselines import BASELINES

    artifact = mnemosyne.load(weights)
    found: dict[str, Factory] = {
        "adam": lambda: optax.adam(1e-3),
        "ours": lambda: mnemosyne.scale_by_mnemosyne(artifact.meta_params, artifact.config),
    }
    if artifact.config.mode == "plus":
        found["ours-no-residual"] = lambda: _without_residual(artifact.config)
    return found | {name: _learned(make) for name, make in BASELINES.items()}


def _without_residual(config: mnemosyne.MnemosyneConfig) -> optax.GradientTransformation:
    fields = config.to_dict() | {"residual": False}
    plain = mnemosyne.MnemosyneConfig.from_dict(fields)
    theta = jax.jit(mnemosyne.init_meta_params, static_argnums=1)(jax.random.key(0), plain)
    return mnemosyne.scale_by_mnemosyne(_perturbed(theta), plain)


def _learned(make: Callable[[], Any]) -> Factory:
    def build() -> optax.GradientTransformation:
        rule = make()
        return rule.transform(_perturbed(rule.init(jax.random.key(0))))

    return build


def _perturbed(theta: Any) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(x + NOISE * rng.standard_normal(x.shape), jnp.float32), theta
    )


def updates_per_call(params: int) -> int:
    """Updates in one compiled loop: enough to hide its start, few enough gradients to hold."""
    return 50 if params <= 20_000 else 10 if params <= 2_000_000 else 4


def _loop(optimizer: optax.GradientTransformation) -> Any:
    """The compiled loop over updates, not lowered yet."""

    def step(carry: tuple[Any, Any], grads: Any) -> tuple[tuple[Any, Any], None]:
        state, params = carry
        updates, state = optimizer.update(grads, state, params)
        return (state, optax.apply_updates(params, updates)), None

    def run(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        return jax.lax.scan(step, (state, params), grads)[0]

    return jax.jit(run, donate_argnums=(1, 2))


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def prepare(optimizer: optax.GradientTransformation, shapes: Any, max_gib: float) -> Candidate:
    """Compiles one update, for its compile time and memory, and the loop, unless it is too large.

    Nothing of the size of the network is allocated.

    Args:
      optimizer: what to measure.
      shapes: of the parameters, a pytree of ``jax.ShapeDtypeStruct``.
      max_gib: memory that the loop may need.
    """
    state = jax.eval_shape(optimizer.init, shapes)
    began = time.perf_counter()
    update = jax.jit(optimizer.update, donate_argnums=1).lower(shapes, state, shapes).compile()
    compile_s = time.perf_counter() - began
    analysis = update.memory_analysis()
    temporary = None if analysis is None else int(analysis.temp_size_in_bytes)
    params = _bytes(shapes) // 4
    row: dict[str, Any] = {
        "state_bytes": _bytes(state),
        "state_floats_per_param": _bytes(state) / 4 / params,
        "temporary_bytes": temporary,
        "compile_s": compile_s,
        "skipped": None,
    }
    count = updates_per_call(params)
    needed = _bytes(shapes) * (count + 3) + _bytes(state) + (temporary or 0)
    if needed > max_gib * 2**30:
        row["skipped"] = f"needs {needed / 2**30:.1f} GiB"
        return Candidate(None, optimizer.init, row)
    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), shapes)
    run = _loop(optimizer).lower(many, state, shapes).compile()
    return Candidate(run, jax.jit(optimizer.init), row)


def alternate(candidates: Mapping[str, Candidate], shapes: Any, rounds: int) -> dict[str, Any]:
    """Seconds of every candidate's loop, one entry a round, after a round that does not count."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    count = updates_per_call(_bytes(shapes) // 4)
    grads = jax.tree.map(lambda x: normal(count, *x.shape), shapes)
    start = {name: jax.tree.map(lambda x: normal(*x.shape), shapes) for name in candidates}
    carried = {name: (one.init(start[name]), start[name]) for name, one in candidates.items()}
    del start
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, one in candidates.items():
            began = time.perf_counter()
            carried[name] = jax.block_until_ready(one.run(grads, *carried[name]))
            seconds[name].append(time.perf_counter() - began)
    return {name: np.asarray(times[1:]) for name, times in seconds.items()}


def measure(
    factories: Mapping[str, Factory], layout: str, params: int, options: Options
) -> Iterator[dict[str, Any]]:
    """One row an optimizer, on one network.

    Args:
      factories: of the optimizers; ``"adam"`` among them.
      layout: a name in :data:`layouts.LAYOUTS`.
      params: about how many parameters.
      options: rounds and bound of the memory.
    """
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in layouts.LAYOUTS[layout](params)]
    size = _bytes(shapes) // 4
    about = {"layout": layout, "params": size, "tensors": len(shapes)}
    if len(shapes) > MAX_TENSORS:
        skipped = f"has more than {MAX_TENSORS} tensors"
        yield from ({"optimizer": name, **about, "skipped": skipped} for name in factories)
        return
    found = {name: prepare(make(), shapes, options.max_gib) for name, make in factories.items()}
    runnable = {name: one for name, one in found.items() if one.run is not None}
    seconds = alternate(runnable, shapes, options.rounds)
    for name, one in found.items():
        row = {"optimizer": name, **about, **one.row}
        row["compile_ratio"] = one.row["compile_s"] / found["adam"].row["compile_s"]
        if name in seconds:
            row["ns_per_param"] = _nanoseconds(seconds[name], size)
        if name in seconds and "adam" in seconds:
            # Each round compares neighbors in time.
            row["ratio_to_adam"] = float(np.median(seconds[name] / seconds["adam"]))
        yield row


def _nanoseconds(seconds: np.ndarray, params: int) -> float:
    return float(np.median(seconds)) / updates_per_call(params) / params * 1e9


def growth(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How an update's time grows between neighboring sizes: 1 is in proportion to parameters."""
    found = []
    timed = [row for row in rows if row.get("ns_per_param")]
    for i, row in enumerate(timed):
        same = [
            later
            for later in timed[i + 1 :]
            if (later["layout"], later["optimizer"]) == (row["layout"], row["optimizer"])
        ]
        if not same or same[0]["params"] == row["params"]:
            continue
        times = [r["ns_per_param"] * r["params"] for r in (row, same[0])]
        exponent = math.log(times[1] / times[0]) / math.log(same[0]["params"] / row["params"])
        found.append(
            {
                "layout": row["layout"],
                "optimizer": row["optimizer"],
                "from": row["params"],
                "to": same[0]["params"],
                "exponent": exponent,
            }
        )
    return found


def sizes(text: str) -> list[int]:
    """``"1e4,1e6"`` as numbers of parameters, smallest first.

    Raises:
      ValueError: for anything that is not a number of at least 1.
    """
    try:
        found = sorted({int(float(part)) for part in text.split(",")})
    except (ValueError, OverflowError):
        found = [0]
    if found[0] < 1:
        raise ValueError(f"--params takes sizes of at least 1 such as 1e4,1e6, got {text!r}.")
    return found


def _chosen(options: Options) -> dict[str, Factory]:
    """The optimizers asked for, Adam always among them."""
    every = optimizers(options.weights)
    for name in options.only:
        if name not in every:
            raise ValueError(f"--only takes names of {', '.join(every)}; got {name!r}.")
    keep = ("adam", *options.only) if options.only else tuple(every)
    return {name: make for name, make in every.items() if name in keep}


def run(options: Options) -> dict[str, Any]:
    """Measures every row, prints them as they come.

    Raises:
      ValueError: for sizes, names or bounds that make no sense.
    """
    if options.rounds < 1 or options.max_gib <= 0:
        raise ValueError("--rounds must be at least 1 and --max-gib positive.")
    params, factories = sizes(options.params), _chosen(options)
    rows: list[dict[str, Any]] = []
    with _no_compilation_cache():
        for layout in options.layout:
            for size in params:
                found = list(measure(factories, layout, size, options))
                print(f"\n{table(found)}", flush=True)
                rows += found
    return {"benchmark": "cost", "rows": rows, "growth": growth(rows), **provenance.stamp()}


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """Compile times are of compilation, not of reading a stored program."""
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.values["jax_enable_compilation_cache"]
    # JAX looks at the setting once a process, unless it is told to look again.
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def table(rows: list[dict[str, Any]]) -> str:
    """One network's rows as markdown."""
    first = rows[0]
    header = [f"{first['layout']}, {first['params']:,} parameters, {first['tensors']} tensors"]
    header += ["ns/parameter", "times Adam", "temporary bytes/parameter", "state floats/parameter"]
    header += ["compile s", "note"]
    return markdown(header, [[row["optimizer"], *_cells(row)] for row in rows])


def _cells(row: dict[str, Any]) -> list[str]:
    def number(name: str, scale: float = 1.0, form: str = ".2f") -> str:
        value = row.get(name)
        return "" if value is None else format(value * scale, form)

    return [
        number("ns_per_param"),
        number("ratio_to_adam"),
        number("temporary_bytes", 1.0 / row["params"]),
        number("state_floats_per_param"),
        number("compile_s"),
        f"skipped: {row['skipped']}" if row.get("skipped") else "",
    ]

"""What is wrong with the file's routes, within one and across its sections."""

from __future__ import annotations

from collections.abc import Iterator

from extproc.config.locations import Loc
from extproc.config.model import Config
from extproc.config.routes import RouteConfig, RouteModel
from extproc.core.own_paths import is_pattern, same
from extproc.meant import meant


def route_checks(config: Config) -> Iterator[tuple[Loc, str]]:
    """Yield (location, message) for each mistake of the file's routes."""
    served = sorted({model for pool in config.pools for model in pool.models})
    seen: set[tuple[str, str]] = set()
    kinds: dict[str, bool] = {}
    for i, route in enumerate(config.routes):
        at: Loc = ("routes", i)
        twin = (route.method, route.path) in seen
        if is_pattern(route.path):
            twin = any(method == route.method and same(route.path, path) for method, path in seen)
            yield from (((*at, *where), said) for where, said in _open(route))
        if twin:
            yield (*at, "path"), f"{route.method} {route.path!r} is a route above already; remove one of them"
        seen.add((route.method, route.path))
        # Envoy tells forms by their path alone, before anybody looks at the method.
        if kinds.setdefault(route.path, route.body == "form") != (route.body == "form"):
            yield (*at, "body"), f"{route.path!r} takes a form by another method; one path takes one of them"
        yield from (((*at, *where), said) for where, said in _wrong(route))
        proxy = config.gateway.trusted_proxy
        if proxy is not None and route.model.header == proxy.header:
            yield (*at, "model", "header"), "names tenants (gateway.trusted_proxy.header); write another one"
        if (fixed := route.model.fixed) is not None and fixed not in served:
            known = ", ".join(served)
            yield (
                (*at, "model", "fixed"),
                f"no pool serves {fixed!r}; pools serve {known}{meant(fixed, served)}",
            )


def _open(route: RouteConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """What a path that stands for several cannot have: Envoy would have to match it too."""
    if route.body == "form":
        yield (
            ("body",),
            f"a form needs a whole path, and {route.path!r} stands for several; write each",
        )
    # A check of a file imports nothing that decides.
    from extproc.core.misrouted import dialect_of

    usual = dialect_of(route.path).value
    if route.dialect != usual:
        yield ("dialect",), f"of {route.path!r}, which stands for several paths, is {usual}; write that"


def _wrong(route: RouteConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """What does not go together within one."""
    named = route.model
    given = [name for name in RouteModel.model_fields if getattr(named, name) is not None]
    if len(given) != 1:
        said = f"has {' and '.join(given)}; keep one" if given else "names no place"
        yield ("model",), f"{said}: write field, header, form or fixed"
    bodiless = route.method in ("GET", "DELETE")
    if bodiless and route.body != "none":
        yield ("body",), f"a {route.method} has none; write none"
    if named.field is not None and route.body != "json":
        other = "form" if route.body == "form" else "header or fixed"
        yield ("model",), f"there is no JSON body to find a field in; write {other}"
    if named.form is not None and route.body != "form":
        yield ("model", "form"), "is for body: form; write field"
    if route.input and route.body != "json":
        yield ("input",), "is for JSON bodies; remove it"
    if route.work == "generation" and route.body == "none":
        yield ("work",), "there is nothing to generate from without a body; write none, or embedding"
    if route.output_limit is not None and (route.work != "generation" or route.body != "json"):
        yield ("output_limit",), "bounds what a JSON body's generation may write; remove it"
    if route.streams != "never" and route.work != "generation":
        yield ("streams",), "only a generation streams; write never"
    if route.streams == "asked" and route.body == "form" and "." in route.stream_field:
        yield ("stream_field",), "a form's fields have no dots in their paths; write the field's name"
    usage = route.usage
    if route.work == "none" and (usage.input or usage.output):
        yield ("usage",), "work 'none' is charged no tokens; remove it, or write embedding"
    if route.work == "embedding" and usage.output:
        yield ("usage", "output"), "an embedding has no output; remove it"
    if route.streams != "never":
        for name in ("input", "output"):
            place = getattr(usage, name)
            if place is not None and "." not in place:
                message = (
                    f"{place!r} stands in no object, and so is not seen in streams; name an object's field"
                )
                yield ("usage", name), message

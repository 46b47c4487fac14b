#!/usr/bin/env python3
"""House rules that no compiler checks: file and function size, file headers, one module per wrapped crate, rooms that
only the registry names, no stubs, no more crates than there were.

Prints every breach as file:line and exits 1 if there is one. Exemptions stand in exempt.txt, a reason each.
"""

import pathlib
import re
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
MAX_FILE, MAX_FUNCTION = 800, 80

# A crate whose types must not cross one module (crates.md, section 6): where it may be named.
WRAPPED = {
    "jsonwebtoken": ["broker/src/jwt.rs"],
    "pg_query": ["policies/src/sql/postgres/parse.rs"],
    "cel": ["policies/src/engine/expr/grammar.rs"],
    "hickory_resolver": ["sidecar/src/dial.rs", "sidecar/src/dial/"],
    "serde_saphyr": ["policies/src/yaml.rs", "policies/src/yaml/"],
    "netlink_packet_sock_diag": ["sidecar/src/accept/owner.rs"],
    "netlink_packet_netfilter": ["sidecar/src/fence/table.rs"],
    "prometheus": ["cluster/src/numbers.rs", "broker/src/metrics.rs", "injector/src/metrics.rs"],
    "opentelemetry": ["broker/src/traces.rs"],
    "opentelemetry_otlp": ["broker/src/traces.rs"],
    "opentelemetry_sdk": ["broker/src/traces.rs"],
    "opentelemetry_http": ["broker/src/traces/collector.rs"],
    "quick_xml": ["broker/src/credentials/xml.rs"],
    "tracing_opentelemetry": ["broker/src/traces.rs"],
    "kube": ["policies/src/api/", "policies/src/bin/crdgen.rs", "broker/src/kubernetes.rs", "broker/src/kubernetes/",
             "injector/src/kubernetes.rs", "injector/src/kubernetes/", "cluster/src/", "cli/src/cluster.rs",
             "cli/src/cluster/"],
}

# Rooms (protocols) are named by the registry alone, so that a new one touches no other file (architecture.md).
ROOMS, REGISTRY = "sidecar/src/protocols/", "sidecar/src/protocols.rs"


def tracked(*patterns):
    out = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, check=True, capture_output=True).stdout
    return [ROOT / name for name in out.decode().split("\0") if name and (ROOT / name).exists()]


def exemptions():
    entries = {}
    for line in (ROOT / "tests/lint/exempt.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            path, _, reason = line.partition(" ")
            assert reason.strip(), f"exempt.txt: {path} has no reason"
            entries[path] = reason.strip()
    return entries


def functions(lines):
    """(first line, length) of every function, by the indentation rustfmt guarantees."""
    start = re.compile(r"^(\s*)(pub(\([^)]*\))? )?(const |async |unsafe |extern \"C\" )*fn \w+")
    for number, line in enumerate(lines):
        match = start.match(line)
        if not match or line.rstrip().endswith(";"):
            continue
        for end in range(number, len(lines)):
            if lines[end].startswith(match.group(1) + "}") and len(lines[end].rstrip()) <= len(match.group(1)) + 1:
                yield number + 1, end - number + 1
                break
            if lines[end].rstrip().endswith(";") and "{" not in "".join(lines[number : end + 1]):
                break


NAMED = {
    room.stem: re.compile(rf"\b(protocols|super)::(\{{[^}}]*\b)?{room.stem}\b")
    for room in (ROOT / ROOMS).iterdir()
    if room.suffix == ".rs" or (room / "mod.rs").exists()
}


def room_named(name, code):
    """The room that a file outside of it names, if it does."""
    home = name.removeprefix(ROOMS).split("/")[0].removesuffix(".rs") if name.startswith(ROOMS) else ""
    outside = (room for room, pattern in NAMED.items() if room != home and pattern.search(code))
    return next(outside, None) if name != REGISTRY else None


def crates(problems):
    """The dependency tree only shrinks, unless somebody says why in the commit that raises the figure."""
    allowed = int((ROOT / "tests/lint/crates.txt").read_text().split()[0])
    found = (ROOT / "Cargo.lock").read_text().count("\n[[package]]\n")
    if found != allowed:
        problems.append(f"tests/lint/crates.txt:1: Cargo.lock has {found} crates, {allowed} stand here: write {found}, and why in the commit")


def check(path, exempt, problems):
    name = str(path.relative_to(ROOT))
    lines = path.read_text().splitlines()
    if name not in exempt:
        if len(lines) > MAX_FILE:
            problems.append(f"{name}:1: {len(lines)} lines; a file has at most {MAX_FILE}: split it")
        for line, length in functions(lines):
            if length > MAX_FUNCTION:
                problems.append(f"{name}:{line}: a function of {length} lines; at most {MAX_FUNCTION}: split it")
    if not lines or not lines[0].startswith("//!"):
        problems.append(f"{name}:1: open the file with `//!`: what it owns, what it refuses, the invariant")
    text = "\n".join(lines)
    for number, line in enumerate(lines, 1):
        code = line.split("//")[0]
        if name.startswith("sidecar/src/") and (room := room_named(name, code)):
            problems.append(f"{name}:{number}: the room `{room}` may be named in {REGISTRY} only")
        if re.search(r"\b(todo|unimplemented)!\(|#\[ignore", code):
            problems.append(f"{name}:{number}: a stub or an ignored test")
        for crate, homes in WRAPPED.items():
            if re.search(rf"\b{crate}::", code) and not any(name == h or (h.endswith("/") and name.startswith(h)) for h in homes):
                problems.append(f"{name}:{number}: `{crate}` may be named in {', '.join(homes)} only")
    if re.search(r"tokio::(task::)?spawn\(|\.spawn_blocking\(|tokio::task::spawn", text) and not (
        name.endswith("task.rs") or name.startswith(("tests/", "bench/", "broker/tests/"))
    ):
        problems.append(f"{name}:1: spawn only through task.rs")


def fuzz_lock(problems):
    """The fuzz targets are a workspace of their own: its lock file must hold what the root's does."""
    lock = lambda folder: tomllib.loads((ROOT / folder / "Cargo.lock").read_text())["package"]
    known, locked = {(package["name"], package["version"]) for package in lock(".")}, lock("fuzz")
    advice = "cp Cargo.lock fuzz/ && cargo update --workspace --manifest-path fuzz/Cargo.toml"
    for package in locked:
        name, version = package["name"], package["version"]
        if (name, version) not in known and name not in ("sidegate-fuzz", "libfuzzer-sys", "arbitrary"):
            problems.append(f"fuzz/Cargo.lock:1: {name} {version} is not the root's version: {advice}")
        manifest = ROOT / name.removeprefix("sidegate-") / "Cargo.toml"
        if name.startswith("sidegate-") and manifest.exists():
            wanted = tomllib.loads(manifest.read_text())["dependencies"].items()
            wanted = {crate for crate, how in wanted if isinstance(how, str) or not how.get("optional")}
            for crate in sorted(wanted - {entry.split()[0] for entry in package["dependencies"]}):
                problems.append(f"fuzz/Cargo.lock:1: {name} wants {crate}: {advice}")


def suites(problems):
    """The suites are modules of one program: a file it does not name would never run."""
    named = set(re.findall(r"^mod (\w+);", (ROOT / "tests/tests/main.rs").read_text(), re.M))
    for path in sorted((ROOT / "tests/tests").glob("*.rs")):
        if path.stem not in named | {"main"}:
            problems.append(f"{path.relative_to(ROOT)}:1: name it in tests/tests/main.rs, or it never runs")


def promises(problems):
    """A page that says which test shows a promise names tests that are there."""
    known = set()
    for path in tracked("*.rs"):
        known |= set(re.findall(r"\bfn (\w+)\s*[(<]", path.read_text()))
        known |= set(re.findall(r'"(?:\w+::)+(\w+)"', path.read_text()))
    for page in ("docs/assurance.md", "docs/failures.md"):
        for number, line in enumerate((ROOT / page).read_text().splitlines(), 1):
            # A test's name is a sentence; fields and counters are shorter, or have no article in them.
            for name in re.findall(r"`([a-z][a-z0-9]*(?:_[a-z0-9]+){3,})`", line):
                if name not in known and not name.startswith("sidegate_"):
                    problems.append(f"{page}:{number}: `{name}` is no test of this repository")


def main():
    problems, exempt = [], exemptions()
    files = tracked("*.rs")
    for path in files:
        check(path, exempt, problems)
    fuzz_lock(problems)
    suites(problems)
    promises(problems)
    for path in exempt:
        if not (ROOT / path).exists():
            problems.append(f"tests/lint/exempt.txt: {path} does not exist")
    crates(problems)
    print("\n".join(problems) or f"house: {len(files)} files, all within the rules ({len(exempt)} exempt, with reasons)")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

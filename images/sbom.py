#!/usr/bin/env python3
"""Prints the list of parts of one of our programs: CycloneDX 1.5, from Cargo's own resolution of Cargo.lock.

What the program is linked from, and nothing that only builds or tests it. The same Cargo.lock gives the same bytes: the serial
number is made from the content, and there is no time.
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tomllib
import uuid

ROOT = pathlib.Path(__file__).resolve().parents[1]
TARGET = "x86_64-unknown-linux-gnu"


def metadata():
    command = [os.environ.get("CARGO", "cargo"), "metadata", "--format-version", "1", "--locked", "--filter-platform", TARGET]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)


def linked(graph, root):
    """Packages that are linked into the root, each with those it names itself."""
    nodes = {node["id"]: node for node in graph["resolve"]["nodes"]}
    normal = lambda node: sorted(
        dep["pkg"] for dep in node["deps"] if any(kind["kind"] is None for kind in dep["dep_kinds"])
    )
    found, waiting = {}, [root]
    while waiting:
        package = waiting.pop()
        if package not in found:
            found[package] = normal(nodes[package])
            waiting.extend(found[package])
    return found


def component(package, checksums):
    name, version = package["name"], package["version"]
    purl = f"pkg:cargo/{name}@{version}"
    made = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if package.get("license"):
        made["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    if checksum := checksums.get((name, version)):
        made["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return made


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: images/sbom.py PACKAGE")
    graph = metadata()
    packages = {package["id"]: package for package in graph["packages"]}
    members = set(graph["workspace_members"])
    root = next((i for i in members if packages[i]["name"] == sys.argv[1]), None)
    if root is None:
        sys.exit(f"images/sbom.py: no crate {sys.argv[1]} in this workspace")
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    checksums = {(entry["name"], entry["version"]): entry.get("checksum") for entry in lock}
    found = linked(graph, root)
    made = {package: component(packages[package], checksums) for package in found}
    main_part = {**made[root], "type": "application"}
    parts = sorted((part for package, part in made.items() if package != root), key=lambda part: part["purl"])
    depends = sorted(
        ({"ref": made[package]["bom-ref"], "dependsOn": sorted(made[on]["bom-ref"] for on in names)}
         for package, names in found.items()), key=lambda entry: entry["ref"],
    )
    bom = {
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": {"component": main_part},
        "components": parts, "dependencies": depends,
    }
    digest = hashlib.sha256(json.dumps(bom, sort_keys=True).encode()).digest()
    bom["serialNumber"] = f"urn:uuid:{uuid.UUID(bytes=digest[:16], version=4)}"
    print(json.dumps(bom, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()

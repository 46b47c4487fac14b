#!/usr/bin/env python3
"""A second verifier of Sidegate's records, written from `docs/record-format.md` and sharing no code with the first.

    sidegate_verify.py [--keys FILE] [--checkpoint FILE] STORE...

Prints one JSON line per store: findings about the store, each log's and each session's verdict, and the exit code
the verdicts lead to. Exits with the worst of them; 2 when a store cannot be read.
"""

import argparse
import json
import os
import re
import sys
import uuid

from walk import Walk, Finding, code, worst
from formats import Checkpoint, Frame, NotAFrame, Ring, Tree, bundle, sha256, tile_path, unhex32, unsigned

NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}"


def begins(data):
    """The log number that a journal begins with."""
    try:
        return Frame(data, 0).log_number
    except NotAFrame:
        return float("inf")


class Store:
    """Claims first, then landing journals, then objects."""

    def __init__(self, root, options):
        self.root, self.options = root, options
        self.findings, self.logs, self.sessions = [], {}, {}

    def names(self, prefix):
        found = []
        for folder, _, files in os.walk(os.path.join(self.root, prefix)):
            for name in files:
                if not name.startswith(".tmp-"):
                    found.append(os.path.relpath(os.path.join(folder, name), self.root))
        return sorted(found)

    def read(self, name):
        try:
            with open(os.path.join(self.root, name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def find(self, verdict):
        self.findings.append(verdict)

    def verify(self):
        clusters = sorted({name.split("/")[1] for name in self.names("v1") if name.count("/") > 1})
        if not clusters:
            raise OSError("no record store at " + self.root)
        for cluster in clusters:
            self.cluster(cluster)
        verdicts = self.findings + [v for _, v in self.logs.values()] + list(self.sessions.values())
        return {
            "store": self.findings,
            "logs": {name: verdict for name, (_, verdict) in sorted(self.logs.items())},
            "sessions": dict(sorted(self.sessions.items())),
            "exit": max([code(verdict) for verdict in verdicts], default=0),
        }

    def cluster(self, cluster):
        base = "v1/%s/" % cluster
        ring = self.ring(base)
        claims = self.claims(base, ring)
        landings = self.landings(base)
        logs = {}
        for name in self.names(base):
            part = name[len(base) :].split("/")[0] if "/" in name[len(base) :] else ""
            if part == "log":
                found = re.fullmatch(re.escape(base) + r"log/(%s/%s/(?:0|[1-9]\d*))/[^/]+" % (NAME, NAME), name)
                if found:
                    logs.setdefault(found[1], []).append(name)
                else:
                    self.find("FORGED")
            elif part not in ("landing", "session", "tlog", "keys", "shred"):
                self.find("FORGED")
        for log in list(landings) + list(claims["frames"]):
            logs.setdefault(log, [])
        sessions, recovered, earlier = {}, {}, {}
        for log in sorted(logs, key=lambda log: (log.split("/")[:2], int(log.split("/")[2])), reverse=True):
            walk = Walk(cluster, log, ring, claims["frames"].get(log, {}), claims["seals"].get(log, set()))
            if log in claims["torn"]:
                walk.log_finding("FORGED")
            walk.repeated_from = min(map(begins, landings.get(log, [])), default=float("inf"))
            for index, name in enumerate(logs[log]):
                digits = re.fullmatch(r"(\d{20})\.sgr", name.rsplit("/", 1)[1])
                last = index + 1 == len(logs[log]) and log not in landings
                walk.object(int(digits[1]) if digits else None, self.read(name) or b"", last)
            for data in landings.get(log, []):
                walk.landing(data)
            walk.end(recovered.get(walk.boot))
            earlier.pop(walk.boot, None)
            for boot, (instance, number, head) in walk.recovered.items():
                recovered[boot] = (number, head)
                earlier[boot] = "%s/%s" % (log.rsplit("/", 1)[0], instance)
            self.logs[log] = (walk, walk.finding.verdict or "VALID")
            for session, state in walk.sessions.items():
                if session in sessions:
                    state.finding.add("FORGED")
                sessions[session] = state
        for log in earlier.values():
            if log.startswith("_broker/") and log not in logs:
                self.logs[log] = (None, "TRUNCATED(after nothing)")
        self.summaries(base, claims, sessions)
        shredded = {name.rsplit("/", 1)[1] for name in self.names(base + "shred")}
        for session, state in sessions.items():
            self.sessions[session] = state.verdict(session in shredded)

    def landings(self, base):
        """The journals of each log, the one that begins first before the others: each of several brokers has its own."""
        for look in range(10):
            landings, others, vanished = {}, 0, False
            for name in self.names(base + "landing"):
                form = r"landing/(%s/%s/(?:0|[1-9]\d*))(\.[a-z0-9-]{1,63})?\.sgr" % (NAME, NAME)
                found, data = re.fullmatch(re.escape(base) + form, name), self.read(name)
                if not found:
                    others += 1
                elif data is None:
                    vanished = True
                else:
                    landings.setdefault(found[1], []).append(data)
            if not vanished:
                break
        for _ in range(others):
            self.find("FORGED")
        return {log: sorted(journals, key=begins) for log, journals in landings.items()}

    def ring(self, base):
        ring = Ring()
        if self.options.keys:
            with open(self.options.keys, "rb") as file:
                says = json.load(file)
            good = [ring.add_jwk(jwk) for jwk in says.get("keys", [])]
            good += [ring.add_note_key(text) for text in says.get("checkpoints", [])]
            if not all(good):
                raise OSError(self.options.keys + " is no key file")
            return ring
        for name in self.names(base + "keys"):
            data = self.read(name) or b""
            try:
                if name.endswith(".jwk"):
                    good = ring.add_jwk(json.loads(data))
                else:
                    good = ring.add_note_key(data.decode()) and name.endswith(".vkey")
            except (ValueError, AttributeError):
                good = False
            if not good:
                self.find("FORGED")
        return ring

    def claims(self, base, ring):
        claims = {"frames": {}, "seals": {}, "summaries": {}, "torn": set()}
        names = self.names(base + "tlog")
        notes = [self.read(name) or b"" for name in names if name.startswith(base + "tlog/checkpoint.")]
        if self.options.checkpoint:
            with open(self.options.checkpoint, "rb") as file:
                notes.append(file.read())
        checkpoints = []
        for note in notes:
            try:
                checkpoints.append(Checkpoint(note, ring))
            except (ValueError, IndexError):
                self.find("FORGED")
        entries = self.entries(base, names, max([note.size for note in checkpoints], default=0))
        tree, roots = Tree(), {0: Tree().root()}
        for entry in entries:
            tree.push(entry)
            roots[tree.size] = tree.root()
        for note in checkpoints:
            if note.size in roots and roots[note.size] != note.root:
                self.find("FORGED")
        self.tiles(base, names, entries)

        def frame(log, number, head):
            before = claims["frames"].setdefault(log, {})
            if before.get(number, head) != head:
                claims["torn"].add(log)
            before[number] = head

        for entry in entries:
            lines = entry.decode("utf-8", "replace").split("\n")
            if len(lines) == 5 and lines[0] == "sidegate-seal-v1" and lines[4] == "":
                numbers = [unsigned(number) for number in lines[2].split(" ")]
                head = unhex32(lines[3])
                if len(numbers) == 3 and None not in numbers and head:
                    frame(lines[1], numbers[2], head)
                    claims["seals"].setdefault(lines[1], set()).add(head)
                    continue
            if len(lines) == 4 and lines[0] == "sidegate-summary-v1" and lines[3] == "" and unhex32(lines[2]):
                if claims["summaries"].get(lines[1], unhex32(lines[2])) != unhex32(lines[2]):
                    self.find("FORGED")
                claims["summaries"][lines[1]] = unhex32(lines[2])
                continue
            self.find("FORGED")
        for note in checkpoints:
            for log, number, head in note.heads:
                frame(log, number, head)
        return claims

    def entries(self, base, names, size):
        entries, index = [], 0
        while len(entries) < size:
            missing = min(256, size - len(entries))
            wide = [w for w in range(256, missing - 1, -1) if base + "tlog/" + tile_path("entries", index, w) in names]
            data = self.read(base + "tlog/" + tile_path("entries", index, wide[0])) if wide else None
            if data is None:
                self.find("TRUNCATED(after %d)" % len(entries))
                return entries
            more = bundle(data) or []
            entries += more
            if len(more) < missing:
                self.find("FORGED")
                return entries
            index += 1
        return entries[:size]

    def tiles(self, base, names, entries):
        levels = [[sha256(b"\0" + entry) for entry in entries]]
        while len(levels[-1]) >= 256:
            level, upper = levels[-1], []
            for at in range(0, len(level) - 255, 256):
                hashes = level[at : at + 256]
                while len(hashes) > 1:
                    hashes = [sha256(b"\1" + hashes[i] + hashes[i + 1]) for i in range(0, len(hashes), 2)]
                upper.append(hashes[0])
            levels.append(upper)
        for name in names:
            found = re.fullmatch(r"tile/(entries|\d+)/((?:x\d{3}/)*\d{3})(?:\.p/(\d+))?", name[len(base) + 5 :])
            if not found:
                continue
            index = int(found[2].replace("x", "").replace("/", ""))
            width = int(found[3]) if found[3] else 256
            part = slice(index * 256, index * 256 + width)
            if found[1] == "entries":
                right = entries[part]
                right = b"".join(len(e).to_bytes(2, "big") + e for e in right) if len(right) == width else None
            else:
                right = levels[int(found[1])][part] if int(found[1]) < len(levels) else []
                right = b"".join(right) if len(right) == width else None
            if right is not None and right != (self.read(name) or b""):
                self.find("FORGED")

    def summaries(self, base, claims, sessions):
        names = set(self.names(base + "session")) | set(claims["summaries"])
        for name in sorted(names):
            session = name.rsplit("/", 1)[1].split(".")[0]
            verdict = self.summary(name, claims["summaries"].get(name), sessions.get(session))
            if verdict and session in sessions:
                sessions[session].finding.add(verdict)
            elif verdict:
                sessions[session] = Finding.session(verdict)

    def summary(self, name, claim, state):
        data = self.read(name)
        last = "nothing" if state is None or state.next == 0 else state.next - 1
        if data is None:
            return "TRUNCATED(after %s)" % last
        if claim is not None and sha256(data) != claim:
            return "FORGED"
        try:
            says = json.loads(data)
            orphan, frames = says.get("orphan"), says["frames"]
            told = (says["head"], says["log"], says["first"])
        except (ValueError, KeyError, AttributeError):
            return "FORGED"
        if state is None:
            return "TRUNCATED(after nothing)"
        if orphan is not None:
            state.alive = False
        if frames > state.frames:
            return "TRUNCATED(after %s)" % last
        if orphan is not None:
            return None
        fits = frames == state.frames and told == (state.head.hex(), state.log, state.first)
        return None if fits else "FORGED"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keys")
    parser.add_argument("--checkpoint")
    parser.add_argument("stores", nargs="+")
    options = parser.parse_args()
    exits = []
    for root in options.stores:
        try:
            report = Store(root, options).verify()
        except OSError as error:
            report = {"error": str(error), "exit": 2}
        print(json.dumps(report, sort_keys=True))
        exits.append(report["exit"])
    return max(exits)


if __name__ == "__main__":
    sys.exit(main())

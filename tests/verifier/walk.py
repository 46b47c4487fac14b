"""The walk over one log: `docs/record-format.md`, section "How a log is verified", step by step."""

import json
import uuid

from formats import Footer, Frame, NotAFrame, Tree, ZERO, key32, unhex32

CODES = {"VALID": 0, "OPEN": 0, "SHREDDED": 0, "UNSEALED": 10, "CLOCK-SUSPECT": 11, "TRUNCATED": 20, "GAP": 21, "FORGED": 22}
LOST = object()


def code(verdict):
    return CODES[verdict.split("(")[0]]


def worst(verdicts):
    return max(verdicts, key=code)


def after(number):
    return "nothing" if number is None else number


class Finding:
    """The worst that was found; the first of equals stays."""

    def __init__(self):
        self.verdict = None

    def add(self, verdict):
        if self.verdict is None or code(verdict) > code(self.verdict):
            self.verdict = verdict

    @staticmethod
    def session(verdict):
        state = Session("", ZERO, 0)
        state.finding.add(verdict)
        return state


class Session:
    def __init__(self, log, head, first):
        self.log, self.head, self.first = log, head, first
        self.next = self.frames = 0
        self.closed, self.sealed, self.alive = False, None, False
        self.finding = Finding()

    def last(self):
        return self.next - 1 if self.next else None

    def verdict(self, shredded):
        if self.finding.verdict:
            return self.finding.verdict
        if self.closed and self.sealed is not None and self.sealed == self.last():
            return "SHREDDED" if shredded else "VALID"
        if self.alive:
            return "OPEN(until %d)" % (self.last() or 0)
        return "UNSEALED(after %s)" % after(self.sealed)


class Segment:
    def __init__(self, first):
        self.tree, self.touched, self.first = Tree(), set(), first
        self.gap = self.gap_before = None


class Walk:
    def __init__(self, cluster, log, ring, claims, seals):
        self.cluster, self.log, self.ring = cluster, log, ring
        self.namespace, self.pod, instance = log.split("/")
        self.instance = int(instance)
        self.claims, self.seals = dict(claims), seals
        self.expected = self.frames = self.number = 0
        self.boot_hash, self.zero = ZERO, (0, ZERO)
        self.sessions, self.recovered = {}, {}
        self.segment, self.previous = Segment(0), ZERO
        self.key = self.certificate = self.taint = self.offset = None
        self.key_lost = self.claimed = self.in_landing = self.unsealed = False
        self.finding, self.recent, self.repeated_from = Finding(), {}, float("inf")

    @property
    def boot(self):
        return self.boot_hash.hex()

    def log_finding(self, verdict):
        self.finding.add(verdict)

    def last(self):
        return self.expected - 1 if self.expected else None

    # Sources

    def object(self, first, data, is_last):
        self.recent = {number: there for number, there in self.recent.items() if number >= self.repeated_from}
        try:
            begins = Frame(data, 0).log_number
        except NotAFrame:
            begins = None
        if first is None or (begins is not None and begins != first):
            self.log_finding("FORGED")
        if not data:
            self.log_finding("TRUNCATED(after %s)" % after(self.last()))
        try:
            self.read(data)
        except NotAFrame as error:
            if error.incomplete and is_last:
                self.cut()
            else:
                self.unreadable()
        self.unsealed = self.segment.tree.size > 0

    def landing(self, data):
        self.in_landing = True
        try:
            self.read(data)
        except NotAFrame as error:
            if not error.incomplete:
                self.unreadable()

    def read(self, data):
        at = 0
        while at < len(data):
            frame = Frame(data, at)
            self.frame(frame)
            at += frame.size

    # Findings

    def mark(self, sessions, verdict):
        for session in sessions:
            if session in self.sessions:
                self.sessions[session].finding.add(verdict)

    def mark_open(self, verdict):
        for state in self.sessions.values():
            if not state.closed:
                state.finding.add(verdict)

    def taint_with(self, verdict):
        if self.taint is None:
            self.taint = verdict

    def unreadable(self):
        self.log_finding("FORGED")
        self.mark(self.segment.touched, "FORGED")
        self.taint_with("FORGED")

    def cut(self):
        self.log_finding("TRUNCATED(after %s)" % after(self.last()))
        for state in self.sessions.values():
            if not state.closed or state.sealed != state.last():
                state.finding.add("TRUNCATED(after %s)" % after(state.last()))

    # Frames

    def frame(self, frame):
        number = frame.log_number
        if number < self.expected:
            if not (self.in_landing and self.recent.get(number) == frame.hash):
                self.log_finding("FORGED")
                self.mark([str(uuid.UUID(bytes=frame.session))], "FORGED")
                self.mark(self.segment.touched, "FORGED")
            return
        if number > self.expected:
            self.gap(self.expected, number - 1)
        self.expected = number + 1
        self.frames += 1
        self.recent[number] = frame.hash
        bad = not frame.crc_fits or self.claims.get(number, frame.hash) != frame.hash
        if frame.of_log:
            self.own(frame, bad)
        else:
            self.of_session(frame, bad)
        self.watch_clock(frame)

    def gap(self, start, end):
        self.log_finding("GAP(%d..%d)" % (start, end))
        if self.segment.tree.size == 0:
            self.segment.gap_before = self.segment.gap_before or (start, end)
            self.segment.first = end + 1
        else:
            self.segment.gap = self.segment.gap or (start, end)
        self.key_lost = True
        self.zero = LOST

    def own(self, frame, bad):
        chained = self.zero is LOST or (frame.number, frame.previous) == self.zero
        astray = frame.of_broker and self.namespace != "_broker"
        if frame.session != bytes(16) or not chained or bad or astray:
            self.log_finding("FORGED")
        self.zero = (frame.number + 1, frame.hash)
        if frame.kind == "seal":
            self.seal(frame)
            return
        self.segment.tree.push(frame.hash)
        try:
            says = json.loads(frame.payload)
        except ValueError:
            says = {}
        if not isinstance(says, dict):
            says = {}
        if frame.kind == "boot":
            self.begin(frame, says)
        elif frame.kind == "cert":
            self.certify(says)
        elif frame.kind == "clock":
            self.offset = None
            self.mark_open("CLOCK-SUSPECT")
        elif frame.kind == "recovered" and unhex32(says.get("head")):
            instance, number = says.get("instance"), says.get("number")
            if type(instance) is int and type(number) is int:
                self.recovered[says.get("log")] = (instance, number, unhex32(says["head"]))

    def begin(self, frame, says):
        theirs = [says.get(name) for name in ("cluster", "namespace", "podUid", "instance")]
        if frame.log_number != 0 or theirs != [self.cluster, self.namespace, self.pod, self.instance]:
            self.log_finding("FORGED")
            self.taint_with("FORGED")
        self.boot_hash = frame.hash
        self.key = key32(says.get("publicKey"))

    def certify(self, says):
        certificate = self.ring.certificate(says.get("certificate"))
        good = certificate is not None and (certificate["pod"], certificate["instance"]) == (self.pod, self.instance)
        if not good or not (self.key_lost or self.key == certificate["key"]):
            self.log_finding("FORGED")
            self.mark(list(self.sessions), "FORGED")
            self.taint_with("FORGED")
            return
        if self.key_lost:
            self.key, self.key_lost = certificate["key"], False
        self.certificate = certificate

    def of_session(self, frame, bad):
        session = str(uuid.UUID(bytes=frame.session))
        if session not in self.sessions:
            head = frame.previous if self.boot_hash == ZERO else self.boot_hash
            self.sessions[session] = Session(self.log, head, frame.log_number)
        state = self.sessions[session]
        if self.taint:
            state.finding.add(self.taint)
        if bad:
            state.finding.add("FORGED")
        begins = frame.kind == "open"
        if frame.session == bytes(16) or state.closed or begins != (frame.number == 0):
            state.finding.add("FORGED")
        elif frame.number < state.next:
            state.finding.add("FORGED")
        elif frame.number > state.next:
            state.finding.add("GAP(%d..%d)" % (state.next, frame.number - 1))
        elif frame.previous != state.head:
            state.finding.add("FORGED")
        state.next, state.head = frame.number + 1, frame.hash
        state.frames += 1
        state.closed = state.closed or frame.kind == "close"
        self.segment.touched.add(session)
        self.segment.tree.push(frame.hash)

    # Footers

    def seal(self, frame):
        segment, self.segment = self.segment, Segment(self.expected)
        previous, self.previous = self.previous, frame.hash
        number, self.number = self.number, self.number + 1
        try:
            footer = Footer(frame.payload)
        except (ValueError, TypeError, KeyError):
            return self.distrust(segment)
        by_key = footer.verifies(self.key)
        by_claim = self.key_lost and frame.hash in self.seals
        self.number, self.key = footer.says["segment"] + 1, footer.next_key
        if not by_key and not by_claim:
            return self.unrooted(segment) if self.key_lost else self.distrust(segment)
        self.claimed = self.claimed or by_claim
        if self.certificate is None and not self.claimed:
            return self.distrust(segment)
        self.key_lost = False
        continues = footer.says["segment"] == number and footer.says["previous"] == previous.hex()
        self.judge(frame, footer.says, segment, continues)
        seconds = frame.wall_us // 1000000
        if self.certificate and not self.certificate["from"] - 60 <= seconds <= self.certificate["to"] + 60:
            self.mark(segment.touched, "CLOCK-SUSPECT")

    def judge(self, frame, says, segment, continues):
        fits = (
            (self.boot_hash == ZERO or says["log"] == self.boot)
            and says["first"] == segment.first
            and says["last"] + 1 == frame.log_number
            and says["root"] == segment.tree.root().hex()
            and (says["monoNs"], says["wallUs"], says["number"]) == (frame.mono_ns, frame.wall_us, frame.number)
        )
        gap = segment.gap or segment.gap_before
        if fits and gap is None and continues and self.heads_fit(says):
            self.sign(segment)
        elif fits and segment.gap is None and segment.gap_before:
            self.heads_lost(says)
            self.sign(segment)
        elif gap:
            self.heads_lost(says)
            self.mark(segment.touched, "GAP(%d..%d)" % gap)
        else:
            self.log_finding("FORGED")
            self.mark(segment.touched, "FORGED")

    def heads_fit(self, says):
        still = {s: (state.last(), state.head.hex()) for s, state in self.sessions.items() if not state.closed}
        told = {head["session"]: (head["number"], head["hash"]) for head in says["heads"]}
        return len(says["heads"]) == len(still) and told == still

    def heads_lost(self, says):
        told = {head["session"] for head in says["heads"]}
        for session, state in self.sessions.items():
            if not state.closed and session not in told:
                state.finding.add("GAP(%d..%d)" % (state.next, state.next))
                state.closed = True
        for head in says["heads"]:
            state = self.sessions.setdefault(head["session"], Session(self.log, ZERO, 0))
            if head["number"] >= state.next:
                state.finding.add("GAP(%d..%d)" % (state.next, head["number"]))
                state.next, state.head = head["number"] + 1, unhex32(head["hash"]) or ZERO

    def sign(self, segment):
        for session in segment.touched:
            self.sessions[session].sealed = self.sessions[session].last()

    def distrust(self, segment):
        self.log_finding("FORGED")
        self.mark(segment.touched, "FORGED")
        self.mark_open("FORGED")
        self.taint_with("FORGED")

    def unrooted(self, segment):
        verdict = "GAP(%d..%d)" % (segment.gap or segment.gap_before or (0, segment.first))
        self.mark(segment.touched, verdict)
        self.mark_open(verdict)
        self.taint_with(verdict)

    # Clocks and the end

    def watch_clock(self, frame):
        offset = frame.wall_us - frame.mono_ns // 1000
        if self.offset is None:
            self.offset = offset
        if abs(offset - self.offset) > 1050000:
            self.offset = offset
            self.mark_open("CLOCK-SUSPECT")
            self.mark([str(uuid.UUID(bytes=frame.session))], "CLOCK-SUSPECT")

    def end(self, recovered):
        if recovered:
            number, head = recovered
            if self.recent.get(number, head) != head:
                self.log_finding("FORGED")
            self.claims.setdefault(number, head)
        if self.claims and max(self.claims) >= self.expected:
            self.cut()
        ended = bool(recovered) or (self.unsealed and not self.in_landing)
        if ended and self.segment.tree.size > 0:
            first = self.segment.first
            self.log_finding("UNSEALED(after %s)" % after(first - 1 if first else None))
        gap = self.segment.gap or self.segment.gap_before
        if gap:
            self.mark(self.segment.touched, "GAP(%d..%d)" % gap)
        for state in self.sessions.values():
            state.alive = not ended

#!/usr/bin/env python3
"""Writes the seeds of the fuzzers into corpus/: one small session, text or token per file.

Run it after changing it; the files are committed. SQL comes from the walk's own corpus in policies/.
"""

import base64
import json
import pathlib
import struct

HERE = pathlib.Path(__file__).resolve().parent
SQL = HERE.parent / "policies/src/sql/postgres/walk/corpus.sql"
MASKED = "select id, email, ssn, note from people"


def frame(tag, payload=b""):
    return tag.encode() + struct.pack("!i", len(payload) + 4) + payload


def query(text):
    return frame("Q", text.encode() + b"\0")


def parse(name, text, *types):
    kinds = b"".join(struct.pack("!I", kind) for kind in types)
    return frame("P", name.encode() + b"\0" + text.encode() + b"\0" + struct.pack("!H", len(types)) + kinds)


def bind(portal, name, *values, results=(0,)):
    cells = b"".join(struct.pack("!i", len(value)) + value for value in values)
    formats = struct.pack("!H", len(results)) + b"".join(struct.pack("!H", one) for one in results)
    return frame("B", portal.encode() + b"\0" + name.encode() + b"\0\0\0" + struct.pack("!H", len(values)) + cells + formats)


def describe(kind, name):
    return frame("D", kind.encode() + name.encode() + b"\0")


def execute(portal, rows=0):
    return frame("E", portal.encode() + b"\0" + struct.pack("!I", rows))


def close(kind, name):
    return frame("C", kind.encode() + name.encode() + b"\0")


def startup(minor=0, **parameters):
    pairs = b"".join(name.encode() + b"\0" + value.encode() + b"\0" for name, value in parameters.items())
    body = struct.pack("!HH", 3, minor) + pairs + b"\0"
    return struct.pack("!i", len(body) + 4) + body


SYNC, FLUSH = frame("S"), frame("H")
LOGIN = startup(user="agent", database="shop", application_name="psql", client_encoding="UTF8")
BEHIND_LOGIN, CAPPED, LATE, TWICE = 2, 1, 8, 16


def agents():
    head = lambda bits, part=7: bytes([bits, part])
    yield "login", head(TWICE) + LOGIN + query("select 1")
    yield "login-options", head(TWICE) + startup(2, user="a", options="-c DateStyle=ISO --TimeZone=UTC", **{"_pq_.x": "1"})
    yield "login-gss", head(0) + struct.pack("!iI", 8, 80877104) + LOGIN
    yield "login-tls", head(0) + struct.pack("!iI", 8, 80877103)
    yield "cancel", head(0) + struct.pack("!iIi", 16, 80877102, 7) + b"abcd"
    yield "hello", head(0) + b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03"
    texts = {
        "masked": MASKED,
        "view": "select * from contacts where id = 1",
        "refused": "drop table people; select 1",
        "vault": "select * from vault",
        "unknown": "select nothing from nowhere",
        "nonsense": "selec t",
        "two": "select 1; select id from orders order by id limit 5",
        "write": "insert into orders (id, note) values (1, 'x') returning *",
        "unfiltered": "update orders set note = 'x'",
        "asks": "delete from orders where id = 7",
        "copy-out": "copy people (id, email) to stdout (format csv)",
        "explain": "explain (costs off) select email from people",
        "rename": "set application_name to 'mine'",
        "path": "set search_path to app, public",
        "create": "create temp table t as select id from orders",
        "filtered": "select id from people where email = 'a@b.example'",
    }
    for at, (name, text) in enumerate(texts.items()):
        yield name, head(BEHIND_LOGIN | TWICE | (at % 2) * CAPPED | (at % 3 == 0) * 4) + query(text) + query("select 1")
    batch = parse("s", "update orders set note = $1 where id = $2", 25, 23) + describe("S", "s")
    batch += bind("", "s", b"x", b"7") + execute("") + SYNC + close("S", "s") + SYNC
    yield "extended", head(BEHIND_LOGIN | TWICE) + batch
    yield "extended-late", head(BEHIND_LOGIN | LATE | CAPPED) + batch
    masked = parse("", MASKED) + bind("p", "") + describe("P", "p") + execute("p", 2) + FLUSH + execute("p") + SYNC
    yield "portal", head(BEHIND_LOGIN | TWICE) + masked
    yield "missing", head(BEHIND_LOGIN | TWICE) + bind("", "none") + execute("none") + describe("S", "none") + SYNC + query("select 1")
    yield "reserved", head(BEHIND_LOGIN) + parse("sidegate.x", "select 1") + SYNC
    copy = query("copy orders (id, note) from stdin") + frame("d", b"1\ta\n") + frame("c") + query("select 1")
    yield "copy-in", head(BEHIND_LOGIN | TWICE) + copy
    # No number begins with 4f: what the scanner turns away is analysed off the thread.
    yield "unscannable", head(BEHIND_LOGIN | TWICE) + query("copy t-4f19c2 from stdin") + frame("d", b"1\n") + frame("c") + query("select 1")
    yield "copy-fail", head(BEHIND_LOGIN) + query("copy orders from stdin") + frame("f", b"no\0") + SYNC
    steps = ["begin", "declare c cursor for " + MASKED, "fetch 5 from c", "close c", "savepoint a", "rollback to a", "commit"]
    yield "transaction", head(BEHIND_LOGIN | TWICE) + b"".join(map(query, steps))
    steps = ["prepare p as " + MASKED, "execute p", "deallocate all", "discard all", "show search_path", "reset all"]
    yield "prepared", head(BEHIND_LOGIN | TWICE) + b"".join(map(query, steps))
    yield "function-call", head(BEHIND_LOGIN | TWICE) + frame("F", b"\0\0\0\1\0\0\0\0\0\0") + query("select 1")
    yield "unknown-message", head(BEHIND_LOGIN | TWICE) + frame("?", b"x") + query("select 1")
    yield "long", head(BEHIND_LOGIN) + b"Q\x7f\xff\xff\xff" + b"x" * 30


def field(name, table, column, kind, form=0):
    return name.encode() + b"\0" + struct.pack("!IhIhih", table, column, kind, -1, -1, form)


def description(form=0):
    columns = [("id", 23), ("email", 25), ("ssn", 25), ("note", 25)]
    fields = b"".join(field(name, 20000, at + 1, kind, form) for at, (name, kind) in enumerate(columns))
    return frame("T", struct.pack("!H", 4) + fields)


def row(*cells):
    return frame("D", struct.pack("!H", len(cells)) + b"".join(struct.pack("!i", len(cell)) + cell for cell in cells))


def ready(status="I"):
    return frame("Z", status.encode())


def done(tag="SELECT 1"):
    return frame("C", tag.encode() + b"\0")


def error(severity="ERROR", code="23505", text="duplicate key", tag="E"):
    fields = {"S": severity, "V": severity, "C": code, "M": text, "D": "Key (email)=(a@b.example) exists"}
    return frame(tag, b"".join(key.encode() + value.encode() + b"\0" for key, value in fields.items()) + b"\0")


def status(name, value):
    return frame("S", name.encode() + b"\0" + value.encode() + b"\0")


def request(code, data=b""):
    return frame("R", struct.pack("!i", code) + data)


def logins():
    pins = status("server_version", "15.14") + status("client_encoding", "UTF8") + status("standard_conforming_strings", "on")
    key = frame("K", struct.pack("!i", 77) + b"keys")
    settled = request(0) + pins + key + ready()
    nonce = b"r=client-nonce-client-nonce-clientserver,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    scram = request(10, b"SCRAM-SHA-256\0SCRAM-SHA-256-PLUS\0\0") + request(11, nonce)
    scram += request(12, b"v=rmF9pqV8S7suAoZWja4dJRkFsKQhZzpgvhnhV9c4Ji8=") + settled
    head = lambda bits, part=0: bytes([0, bits, part])
    yield "login-cleartext", head(8) + request(3) + settled
    yield "login-refuses-cleartext", head(0) + request(3) + settled
    yield "login-md5", head(8, 5) + request(5, b"salt") + settled
    yield "login-scram", head(8) + scram
    yield "login-scram-plus", head(16 | 32) + scram
    yield "login-oauth", head(2 | 16) + request(10, b"OAUTHBEARER\0\0") + settled
    yield "login-trust", head(3) + settled
    yield "login-error", head(8) + error("FATAL", "28P01", "lease-canary-4f19c2 is wrong")
    yield "login-negotiates", head(3) + frame("v", struct.pack("!ii", 196608, 0)) + settled
    section = frame("T", struct.pack("!H", 2) + field("a", 0, 0, 25) + field("b", 0, 0, 25))
    sections = [["150014"], ["app", "t"], ["20000", "app", "people", "r", "0"], ["20000", "1", "id", "23", "-1", "f", "f"]]
    asked = b""
    for cells in sections:
        fields = b"".join(field("c", 0, 0, 25) for _ in cells)
        asked += frame("T", struct.pack("!H", len(cells)) + fields) + row(*(cell.encode() for cell in cells)) + done() + ready()
    yield "login-catalog", head(3) + settled + asked + section + done("SELECT 0") + ready()


def servers():
    yield from logins()
    head = lambda bits, asked: bytes([1, bits, asked])
    masked = description() + row(b"1", b"a@b.example", b"531-22-8841", b"note") + done() + ready()
    yield "rows", head(TWICE | 32, 0) + masked
    yield "rows-capped", head(TWICE | CAPPED, 0) + description() + row(b"1", b"a", b"b", b"call a@b.example") * 25 + done() + ready()
    yield "rows-undescribed", head(0, 0) + row(b"1", b"a@b.example", b"531-22-8841", b"note") + done() + ready()
    described = frame("t", struct.pack("!H", 0)) + description()
    yield "extended", head(TWICE, 1) + frame("1") + described + frame("2") + description() + row(b"1", b"a", b"b", b"c") + done() + ready()
    one = struct.pack("!i", 1)
    yield "binary", head(TWICE, 2) + frame("1") + described + ready() + frame("2") + row(one, b"a", b"b", b"c") + done() + ready()
    yield "suspended", head(0, 7) + frame("1") + described + (frame("2") + row(b"1", b"a", b"b", b"c") + frame("s")) * 2 + ready()
    out = lambda form: frame("H", bytes([form, 0, 4]) + bytes([0, form]) * 4)
    yield "copy-text", head(TWICE, 3) + out(0) + frame("d", b"1\ta\\tb\tb\t\\N\n") + frame("c") + done("COPY 1") + ready()
    yield "copy-csv", head(TWICE, 4) + out(0) + frame("d", b'id,email,ssn,note\n1,"a""b",,x\n') + frame("c") + done() + ready()
    data = b"PGCOPY\n\xff\r\n\0" + bytes(8) + struct.pack("!h", 4) + struct.pack("!i", 4) + one
    data += (struct.pack("!i", 1) + b"a") * 3 + struct.pack("!h", -1)
    yield "copy-binary", head(TWICE, 5) + out(1) + frame("d", data) + frame("c") + done() + ready()
    yield "two", head(0, 6) + masked[:-6] + masked
    yield "error", head(TWICE, 0) + error() + ready()
    yield "error-extended", head(TWICE, 1) + frame("1") + error() + ready()
    yield "fatal", head(0, 8) + error("FATAL", "57P01", "terminating")
    yield "notice", head(CAPPED, 11) + error("NOTICE", "00000", "hi a@b.example", tag="N") + done("SET") + ready()
    yield "notification", head(CAPPED, 15) + frame("A", struct.pack("!i", 7) + b"c\0mail a@b.example\0") + frame("1") + ready()
    yield "pins", head(0, 11) + status("standard_conforming_strings", "off") + done("SET") + ready()
    yield "path", head(4, 11) + status("search_path", '"App", public') + status("application_name", "x") + done("SET") + ready()
    yield "copy-in", head(0, 10) + frame("G", b"\0\0\2\0\0\0\0") + done("COPY 1") + ready() + done() + ready()
    yield "cursor", head(0, 8) + done("BEGIN") + ready("T") + done("DECLARE CURSOR") + ready("T") + masked
    yield "echo", head(0, 9) + error("NOTICE", "00000", "lease-canary-4f19c2", tag="N") + done("UPDATE 0") + ready()
    yield "script-twice", bytes([2, 0, 0, 0, 4, 0, 0, 3, 0])
    yield "script-name", bytes([2, 0, 0, 0, 4, 0, 6, 3, 0])
    yield "script-undescribed", bytes([2, 0, 0, 1, 0, 2, 3, 0])
    for asked in range(8):
        describe, note, complete, end, fail, simple, copy, piece, last = 0, 1, 2, 3, 4, 8, 9, 10, 11
        simple_replies = [simple, 0, simple, 5, describe, simple, 1, describe]
        rows = [describe, note, 2, 65, 66, complete, end, 0]
        copies = [copy, piece, 0, 9, piece, 2, 40, last, complete, end, 0]
        script = {1: simple_replies + rows, 2: simple_replies + [end, 0, simple, 1] + rows, 7: simple_replies + rows}
        body = copies if asked in (3, 4, 5) else script.get(asked, rows)
        yield f"script-{asked}", bytes([2, TWICE | 32, asked, *body])
        yield f"script-{asked}-error", bytes([2, asked % 2, asked, *body[:-2], fail, 0, 1, end, 0])


def walkers():
    lines = SQL.read_text().splitlines()
    for at, line in enumerate(lines):
        yield f"walk-{at:03}", b"\x01" + line.encode()
    shop = [
        "SELECT id, ssn AS x FROM users",
        "SELECT q.* FROM (SELECT ssn, id FROM users) q(a, b)",
        "WITH c AS (SELECT ssn FROM users) SELECT * FROM c",
        "SELECT * FROM v_nested JOIN events USING (id)",
        "COPY (SELECT ssn FROM v_users) TO STDOUT WITH (FORMAT csv, HEADER)",
        "INSERT INTO orders (id) SELECT id FROM users RETURNING *",
        "UPDATE orders o SET note = u.name FROM users u WHERE u.id = o.user_id RETURNING o.*, u.ssn",
        "SELECT lookup(1), u FROM users u, LATERAL jsonb_each('{}') j",
        "SET search_path TO pub; SELECT ssn FROM users",
        r"SELECT E'\'' || U&'d\0061t' || $x$ ; $x$ -- ;",
        "PREPARE p (int) AS SELECT $1; EXECUTE p (1)",
        "SELECT " + "(" * 40 + "1" + ")" * 40,
    ]
    for at, text in enumerate(shop):
        yield f"shop-{at:02}", bytes([at]) + text.encode()


def records():
    """First byte: what is changed; second: of which object; then edits, or bytes for the object."""
    yield "raw", bytes([0, 0]) + b"\x60\0\0\0\1\1\0\0"
    for which in range(4):
        yield f"flip-{which}", bytes([1, which, 0, 0, 40, 1])
        yield f"resealed-{which}", bytes([2, which, 0, 0, 60, 1, 1, 1, 20, 255])
    yield "cut", bytes([1, 0, 2, 0, 90, 0])
    yield "double", bytes([1, 1, 3, 0, 0, 0])
    yield "drop", bytes([1, 1, 4, 0, 0, 0])
    yield "number", bytes([2, 1, 5, 0, 1, 8])


def jwts():
    part = lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
    header = {"alg": "ES256", "typ": "JWT", "kid": "k"}
    claims = {"iss": "https://issuer.example", "aud": "sidegate", "sub": "system:serviceaccount:agents:support",
              "iat": 1700000000, "nbf": 1700000000, "exp": 1700000600}
    pod = {"kubernetes.io": {"namespace": "agents", "pod": {"name": "p", "uid": "u"}, "serviceaccount": {"name": "s", "uid": "v"}}}
    proof = {"alg": "ES256", "typ": "dpop+jwt", "jwk": {"kty": "EC", "crv": "P-256", "x": "a" * 43, "y": "b" * 43}}
    signature = base64.urlsafe_b64encode(bytes(64)).rstrip(b"=").decode()
    token = lambda head, body: f"{part(head)}.{part(body)}.{signature}".encode()
    yield "service-account", token(header, claims | pod)
    yield "audiences", token(header, claims | {"aud": ["a", "sidegate"]})
    yield "none", token({"alg": "none"}, claims)
    yield "dpop", token(proof, {"htm": "POST", "htu": "https://broker/token", "iat": 1700000000, "jti": "j"})
    yield "session", token(header | {"typ": "at+jwt"}, claims | {"jti": "j", "cnf": {"jkt": "a" * 43}})
    yield "crit", token(header | {"crit": ["b64"], "b64": False}, claims)
    yield "twice", b'eyJhbGciOiJFUzI1NiIsImFsZyI6Im5vbmUifQ.e30.AA'
    yield "dots", b"..."


def main():
    targets = {"agent": agents, "server": servers, "walker": walkers, "record": records, "jwt": jwts}
    for target, seeds in targets.items():
        folder = HERE / "corpus" / target
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for name, seed in seeds():
            (folder / name).write_bytes(seed)
        print(f"{target}: {len(list(folder.iterdir()))} seeds")


if __name__ == "__main__":
    main()

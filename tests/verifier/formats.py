"""The record format as `docs/record-format.md` lays it out: frames, footers, certificates, notes, the tile log."""

import base64
import binascii
import hashlib
import json
import re
import struct

import curves

ZERO = bytes(32)
MAX_LENGTH = 1 << 20
KINDS = {
    1: "boot", 2: "cert", 3: "clock", 4: "lossy", 5: "recovered", 6: "seal",
    16: "open", 17: "pins", 18: "policy", 19: "cut", 20: "close",
    32: "intent", 33: "outcome", 48: "denied", 49: "held", 50: "granted", 51: "released",
    64: "body", 65: "term",
    96: "decided", 97: "request", 98: "lockdown", 99: "issued", 100: "refused", 101: "config", 102: "bundle",
}  # fmt: skip

_TABLE = []
for _n in range(256):
    for _ in range(8):
        _n = (_n >> 1) ^ 0x82F63B78 if _n & 1 else _n >> 1
    _TABLE.append(_n)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 255] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def sha256(data):
    return hashlib.sha256(data).digest()


class NotAFrame(Exception):
    """Bytes that are no frame; `incomplete` when they only end too early."""

    def __init__(self, incomplete=False):
        super().__init__()
        self.incomplete = incomplete


class Frame:
    """One frame, parsed from the start of `data`."""

    def __init__(self, data, at):
        if len(data) - at < 4:
            raise NotAFrame(incomplete=True)
        (length,) = struct.unpack_from("<I", data, at)
        if not 84 <= length <= MAX_LENGTH:
            raise NotAFrame()
        self.size = length + 8
        if len(data) - at < self.size:
            raise NotAFrame(incomplete=True)
        hashed = data[at : at + length + 4]
        version, kind, flags, reserved, self.log_number, self.session, self.number, self.mono_ns, self.wall_us, self.previous = (
            struct.unpack_from("<BBBBQ16sQQQ32s", data, at + 4)
        )
        if version != 1 or flags & ~7 or reserved or kind not in KINDS:
            raise NotAFrame()
        self.kind = KINDS[kind]
        self.of_broker = kind >= 96
        self.of_log = kind < 16 or self.of_broker
        self.payload = data[at + 88 : at + length + 4]
        self.hash = sha256(hashed)
        self.crc_fits = struct.pack("<I", crc32c(hashed)) == data[at + length + 4 : at + self.size]


def b64url(text):
    """Strict base64url without padding: one spelling per value."""
    if not isinstance(text, str) or not re.fullmatch(r"[A-Za-z0-9_-]*", text) or len(text) % 4 == 1:
        return None
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    return data if base64.urlsafe_b64encode(data).rstrip(b"=").decode() == text else None


def b64std(text):
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if base64.b64encode(data).decode() == text else None


def unhex32(text):
    return bytes.fromhex(text) if isinstance(text, str) and re.fullmatch(r"[0-9a-f]{64}", text) else None


def key32(text):
    data = b64url(text)
    return data if data is not None and len(data) == 32 else None


def unsigned(text):
    """A decimal without sign or leading zeros, below 2^64."""
    return int(text) if re.fullmatch(r"0|[1-9][0-9]{0,19}", text) and int(text) < 2**64 else None


FOOTER = {
    "segment": int, "log": str, "first": int, "last": int, "root": str, "previous": str,
    "nextKey": str, "heads": list, "monoNs": int, "wallUs": int, "number": int,
}  # fmt: skip


class Footer:
    """The payload of a `seal` frame; raises ValueError where it has another form."""

    def __init__(self, payload):
        envelope = json.loads(payload)
        if not isinstance(envelope, dict) or set(envelope) != {"signed", "signature"}:
            raise ValueError
        right = '{"signed":"%s","signature":"%s"}' % (envelope["signed"], envelope["signature"])
        self.text, self.signature = b64url(envelope["signed"]), b64url(envelope["signature"])
        if right.encode() != payload or self.text is None or self.signature is None:
            raise ValueError
        says = json.loads(self.text)
        if set(says) != set(FOOTER) or any(not isinstance(says[name], kind) for name, kind in FOOTER.items()):
            raise ValueError
        self.says = says
        self.next_key = key32(says["nextKey"])

    def verifies(self, key):
        return key is not None and curves.ed25519(key, b"sidegate-seal-v1\n" + self.text, self.signature)


class Ring:
    """Public keys: P-256 for certificates, Ed25519 for checkpoints."""

    def __init__(self):
        self.jwks, self.notes = [], []

    def add_jwk(self, jwk):
        x, y = key32(jwk.get("x")), key32(jwk.get("y"))
        if jwk.get("kty") != "EC" or jwk.get("crv") != "P-256" or x is None or y is None:
            return False
        self.jwks.append((jwk.get("kid"), x, y))
        return True

    def add_note_key(self, text):
        parts = text.rstrip().split("+", 2)
        blob = b64std(parts[2]) if len(parts) == 3 else None
        if blob is None or len(blob) != 33 or blob[0] != 1:
            return False
        identity = sha256(parts[0].encode() + b"\n" + blob)[:4]
        if identity.hex() != parts[1]:
            return False
        self.notes.append((parts[0], identity, blob[1:]))
        return True

    def certificate(self, jws):
        """What a good certificate says, or None."""
        parts = jws.split(".") if isinstance(jws, str) else []
        data = [b64url(part) for part in parts]
        if len(data) != 3 or None in data:
            return None
        try:
            header, claims = json.loads(data[0]), json.loads(data[1])
            jwk, workload = claims["cnf"]["jwk"], claims["sidegate"]
            audience = claims["aud"]
            good = (
                header["typ"] == "sidegate-record-key+jwt"
                and header["alg"] == "ES256"
                and audience in ("sidegate-records", ["sidegate-records"])
                and (jwk["kty"], jwk["crv"]) == ("OKP", "Ed25519")
            )
            says = {
                "key": key32(jwk["x"]),
                "pod": workload["podUid"],
                "instance": workload["instance"],
                "from": claims.get("nbf", claims["iat"]),
                "to": claims["exp"],
            }
        except (KeyError, TypeError, ValueError):
            return None
        kid = header.get("kid")
        signed = (parts[0] + "." + parts[1]).encode()
        for known, x, y in self.jwks:
            if (known is None or kid is None or known == kid) and curves.es256(x, y, signed, data[2]):
                return says if good and says["key"] is not None else None
        return None


class Checkpoint:
    """A signed note; raises ValueError if it is not good."""

    def __init__(self, data, ring):
        text, line = data.decode("utf-8").rsplit("\n\n", 1)
        text += "\n"
        found = re.fullmatch("\u2014 ([^ ]+) ([^ \n]+)\n", line)
        blob = b64std(found[2]) if found else None
        if blob is None or len(blob) != 68:
            raise ValueError
        keys = [key for name, identity, key in ring.notes if name == found[1] and identity == blob[:4]]
        if not keys or not curves.ed25519(keys[0], text.encode(), blob[4:]):
            raise ValueError
        lines = text[:-1].split("\n")
        self.size, self.root = unsigned(lines[1]), b64std(lines[2])
        if lines[0] != found[1] or self.size is None or len(self.root or b"") != 32:
            raise ValueError
        if not re.fullmatch(r"time [0-9]+", lines[3]):
            raise ValueError
        self.heads = []
        for line in lines[4:]:
            word, log, number, head = line.split(" ")
            number, head = unsigned(number), unhex32(head)
            if word != "log" or number is None or head is None:
                raise ValueError
            self.heads.append((log, number, head))


class Tree:
    """RFC 6962 section 2.1."""

    def __init__(self):
        self.peaks, self.size = [], 0

    def push(self, data):
        carry = (1, sha256(b"\0" + data))
        while self.peaks and self.peaks[-1][0] == carry[0]:
            carry = (carry[0] * 2, sha256(b"\1" + self.peaks.pop()[1] + carry[1]))
        self.peaks.append(carry)
        self.size += 1

    def root(self):
        if not self.peaks:
            return sha256(b"")
        right = self.peaks[-1][1]
        for _, left in reversed(self.peaks[:-1]):
            right = sha256(b"\1" + left + right)
        return right


def bundle(data):
    """Entries of a bundle, or None."""
    entries, at = [], 0
    while at < len(data):
        if len(data) - at < 2:
            return None
        (length,) = struct.unpack_from(">H", data, at)
        if len(data) - at - 2 < length:
            return None
        entries.append(data[at + 2 : at + 2 + length])
        at += 2 + length
    return entries


def tile_path(level, index, width):
    groups = ["%03d" % (index % 1000)]
    index //= 1000
    while index:
        groups.insert(0, "x%03d" % (index % 1000))
        index //= 1000
    return "tile/%s/%s%s" % (level, "/".join(groups), ".p/%d" % width if width < 256 else "")

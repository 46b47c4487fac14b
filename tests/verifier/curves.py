"""Signature checks for the second verifier: Ed25519 and ECDSA over P-256, from the standards alone.

Uses the `cryptography` package where it is installed, because it is faster, and plain integers where it is not.
Verification only; nothing here is fit for signing.
"""

import hashlib

try:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519 as fast_ed25519
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    FAST = True
except ImportError:
    FAST = False

# Ed25519 (RFC 8032)
Q = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, Q - 2, Q) % Q
I = pow(2, (Q - 1) // 4, Q)


def _recover_x(y, sign):
    if y >= Q:
        return None
    xx = (y * y - 1) * pow(D * y * y + 1, Q - 2, Q) % Q
    x = pow(xx, (Q + 3) // 8, Q)
    if (x * x - xx) % Q != 0:
        x = x * I % Q
    if (x * x - xx) % Q != 0 or (x == 0 and sign):
        return None
    return Q - x if x & 1 != sign else x


BY = 4 * pow(5, Q - 2, Q) % Q
BASE = (_recover_x(BY, 0), BY, 1, _recover_x(BY, 0) * BY % Q)


def _add(p, q):
    a = (p[1] - p[0]) * (q[1] - q[0]) % Q
    b = (p[1] + p[0]) * (q[1] + q[0]) % Q
    c = 2 * p[3] * q[3] * D % Q
    d = 2 * p[2] * q[2] % Q
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % Q, g * h % Q, f * g % Q, e * h % Q)


def _mul(s, p):
    r = (0, 1, 1, 0)
    while s:
        if s & 1:
            r = _add(r, p)
        p = _add(p, p)
        s >>= 1
    return r


def _point(data):
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    x = _recover_x(y, sign)
    return None if x is None else (x, y, 1, x * y % Q)


def ed25519(key, message, signature):
    """Whether `signature` is one over `message` under the 32-byte public key."""
    if len(signature) != 64 or len(key) != 32:
        return False
    if int.from_bytes(signature[32:], "little") >= L:
        return False
    if FAST:
        try:
            fast_ed25519.Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
            return True
        except (InvalidSignature, ValueError):
            return False
    a, r = _point(key), _point(signature[:32])
    if a is None or r is None:
        return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % L
    left = _mul(int.from_bytes(signature[32:], "little"), BASE)
    right = _add(r, _mul(h, a))
    return (left[0] * right[2] - right[0] * left[2]) % Q == 0 and (left[1] * right[2] - right[1] * left[2]) % Q == 0


# P-256 (FIPS 186-5)
P = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)


def _p256_add(p, q):
    if p is None or q is None:
        return q if p is None else p
    if p[0] == q[0]:
        if (p[1] + q[1]) % P == 0:
            return None
        m = (3 * p[0] * p[0] - 3) * pow(2 * p[1], P - 2, P) % P
    else:
        m = (q[1] - p[1]) * pow(q[0] - p[0], P - 2, P) % P
    x = (m * m - p[0] - q[0]) % P
    return (x, (m * (p[0] - x) - p[1]) % P)


def _p256_mul(s, p):
    r = None
    while s:
        if s & 1:
            r = _p256_add(r, p)
        p = _p256_add(p, p)
        s >>= 1
    return r


def es256(x, y, message, signature):
    """Whether `signature` (r and s, 64 bytes) is one over `message` under the P-256 point."""
    if len(signature) != 64:
        return False
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    px, py = int.from_bytes(x, "big"), int.from_bytes(y, "big")
    if not (0 < r < N and 0 < s < N) or (py * py - px**3 + 3 * px - B) % P != 0 or max(px, py) >= P:
        return False
    if FAST:
        try:
            key = ec.EllipticCurvePublicNumbers(px, py, ec.SECP256R1()).public_key()
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
            return True
        except InvalidSignature:
            return False
    z = int.from_bytes(hashlib.sha256(message).digest(), "big")
    w = pow(s, N - 2, N)
    point = _p256_add(_p256_mul(z * w % N, G), _p256_mul(r * w % N, (px, py)))
    return point is not None and point[0] % N == r

"""Programs whose claims are slow to read: elements with equal hashes, many parts, many digits. Tests use them, too."""

import textwrap

SEND = """
import itertools, json, os, struct
def send_raw(body):
    for fd in range(3, 32):
        try:
            left = memoryview(body)
            while left: left = left[os.write(fd, left):]
            break
        except OSError: pass
    os._exit(0)
def send(text): send_raw(struct.pack('<I', len(text)) + text.encode())
"""
COLLIDING = (
    "rows = itertools.islice(itertools.product((-1, -2), repeat=13), 8000)\n"
    "items = ','.join('{\"tuple\":[%s%s]}' % ('999,' * 15, ','.join(map(str, row))) for row in rows)\n"
)
CLAIMS = {
    "set_of_tuples": COLLIDING + "text = '{\"value\":{\"set\":[' + items + ']}}'",
    "frozenset_of_tuples": COLLIDING + "text = '{\"value\":{\"frozenset\":[' + items + ']}}'",
    "keys_of_a_dict": COLLIDING + "text = '{\"value\":{\"keys\":[' + items + ']}}'",
    "three_sets": "one = ','.join(str(i * (2 ** 61 - 1)) for i in range(10000))\n"
    "text = '{\"value\":[' + ','.join(['{\"set\":[%s]}' % one] * 3) + ']}'",
    "long_integer": "text = '{\"value\":' + '9' * 4_000_000 + '}'",
    "long_float": "text = '{\"value\":0.' + '9' * 4_000_000 + '}'",
    "many_lists": "text = '{\"value\":[' + '[],' * 1_300_000 + '[]]}'",
    "deep_lists": "text = '{\"value\":' + '[' * 2_000_000 + ']' * 2_000_000 + '}'",
    "error_of_lists": "text = '{\"error\":[' + '[],' * 1_300_000 + '[]]}'",
    "error_of_a_long_name": "text = '{\"error\":\"' + 'x' * 4_000_000 + '\"}'",
    "not_json": "text = '[' * 4_000_000",
    "small_frames": "send_raw(b'\\2\\0\\0\\0{}' * 700_000)",
    "claimed_length": "send_raw(b'\\xff\\xff\\xff\\xff' + b'x' * 4_000_000)",
}


def sending(claim: str, indent: str = "") -> str:
    """Code that makes a claim of CLAIMS and sends it; SEND is to stand before it."""
    return textwrap.indent(f"{CLAIMS[claim]}\nsend(text)\n", indent)

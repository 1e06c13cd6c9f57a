"""In an enclave nothing can be opened that a rehearsal did not open before."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

from ..picture_kinds import damaged, pictures

# Rehearses, and says what is opened for each picture that was not opened in the rehearsal.
CODE = """
import base64, json, sys
opened = set()
sys.addaudithook(lambda event, args: event == "open" and opened.add(str(args[0])))
from partopt.enclave_runner.inside import head, rehearsal
from partopt.enclave_runner.inside.decoding import decoded
from partopt.enclave_runner.program.parts import Limits
from partopt.errors import ServiceError
from partopt.preprocessing import Preprocessing
how = Preprocessing(16, 18)
for data in rehearsal._pictures(16):
    decoded(data, how, Limits())
known, found = set(opened) | set(sys.modules), {}
for name, data in json.load(sys.stdin).items():
    try:
        decoded(base64.b64decode(data), how, Limits())
    except ServiceError as error:
        assert error.code == "bad-image", error
    more = (opened | set(sys.modules)) - known
    if more:
        found[name] = sorted(more)
        known |= more
print(json.dumps(found))
"""


def test_no_picture_opens_what_the_rehearsals_pictures_did_not():
    all_kinds = pictures() | damaged()
    sent = {name: base64.b64encode(data).decode() for name, data in all_kinds.items()}
    assert len(sent) > 70
    done = subprocess.run(
        [sys.executable, "-c", CODE], input=json.dumps(sent), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}

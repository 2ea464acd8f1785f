"""The golden bytes of ``tests/wire/vectors.json``, made by the real hivemind 1.1.12. Run by ``.venv-interop``'s Python.

Takes the JSON of the file and writes it with the bytes of every message that is hivemind's::

    .venv-interop/bin/python tests/interop/hivemind_vectors.py < tests/wire/vectors.json > new.json
"""

import json
import sys

from google.protobuf import text_format
from hivemind.proto import auth_pb2, dht_pb2, p2pd_pb2, runtime_pb2

MODULES = {"auth": auth_pb2, "dht": dht_pb2, "p2pd": p2pd_pb2, "runtime": runtime_pb2}


def main() -> None:
    vectors = json.load(sys.stdin)
    for vector in vectors:
        if vector["whose"] == "hivemind":
            module, _, name = vector["message"].partition(".")
            message = text_format.Parse(vector["text"], getattr(MODULES[module], name)())
            vector["hex"] = message.SerializeToString(deterministic=True).hex()
    json.dump(vectors, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()

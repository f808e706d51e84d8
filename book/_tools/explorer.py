"""A Sphinx extension that puts the explorer of 144 groceries photographs beside the pages: `_static/explorer.html`.

It learns a head of parts with the labels of 225 training photographs and shows others. The file is made once, in half a minute or so, and kept in
data/cache until something that it is made by changes. By hand: `python book/_tools/explorer.py FILE`.
"""

import hashlib
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "data" / "cache"


def make(file):
    """Learn, and write the page."""
    import partlib as pl

    photos = pl.data.groceries()
    learnt, shown = photos.train[::3], photos.where("val", "test")[::5]
    some = photos[[*learnt, *shown]]
    maps = pl.extract(pl.Backbone(size=320), some, cache=CACHE)
    n = len(learnt)
    # Without a batch norm, whose constant would need explaining; the rate and the number of epochs are those of chapter 16.
    net = pl.PartNet(64, pool="max", epochs=15, rate=3e-3, within=192).fit(maps[:n], some.labels[:n])
    return pl.report.explorer(net.head_, maps[n:], some[n:], file, title="What the parts saw: groceries")


def made_by():
    """A digest of all files of the library, and of this one: whatever of them changes, the page is made anew."""
    digest = hashlib.sha256()
    for path in [Path(__file__), *sorted((ROOT / "partlib").rglob("*.py")), ROOT / "partlib" / "explorer.html"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def provide(app, error):
    """Put the page into the site."""
    if error is not None:
        return
    kept = CACHE / f"explorer-{made_by()}.html"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob("explorer-*.html"):
            old.unlink()
        make(kept)
    shutil.copyfile(kept, Path(app.outdir) / "_static" / "explorer.html")


def setup(app):
    app.connect("build-finished", provide)
    return {"parallel_read_safe": True, "version": "1"}


if __name__ == "__main__":
    make(Path(sys.argv[1]))

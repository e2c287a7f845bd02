"""NABirds: the pool of unlabelled birds beside CUB-200-2011 (Van Horn et al., CVPR 2015)."""

from pathlib import Path

from dmlkit.datasets.readers.cub200_2011 import list_caltech
from dmlkit.datasets.readers.listing import About, Listing

ABOUT = About(
    title="NABirds (Van Horn et al., CVPR 2015)",
    published={"all": (48562, 555)},
    folders=("nabirds",),
    needed=("hierarchy.txt",),
    where="https://dl.allaboutbirds.org/nabirds (after a form; nabirds.tar.gz)",
    unpack="tar xzf nabirds.tar.gz, which makes the folder nabirds",
    terms="Cornell Lab of Ornithology; non-commercial research and education, no redistribution",
    archives=(("nabirds.tar.gz", "df21a9e4db349a14e2b08adfd45873bd"),),
)


def list_images(root: Path) -> Listing:
    """List ``nabirds``: the layout of CUB-200-2011, with classes that have gaps in their numbers.

    A pool needs no labels, but the classes are kept for checks and as a ceiling. It holds species
    of the test classes of CUB-200-2011, which no paper that uses it discusses. As a data set of its
    own the first half of the classes trains.
    """
    return list_caltech("nabirds", ABOUT, root)

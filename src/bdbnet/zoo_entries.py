"""Names of networks, known without torch: those of the zoo, with file, digest and training set, and the schemes of others."""

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Schemes of pretrained networks as they are, and of saved folders on a hub: `timm:NAME`.
SCHEMES, HUB = ("timm", "torchvision"), "hub"

_RESEARCH = "images for research only: so are the weights; they show no people, but find people"


@dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Attributes:
        file: name of the file in the cache or, of a network that travels with bdbnet, in its folder.
        sha256, size: of that file; bytes.
        url: where the file is; None where no address is known at which it stays.
        obtain: where else to get it.
        trained_on: data set.
        terms: of the weights, and of the data that they were trained on.
        published: metric -> value, percent, on the test set of `trained_on`; who says so is in `terms` or `obtain`,
            of a network of bdbnet's own in experiments/zoo.
        image_size: height and width of the images, pixels.
        distance: by which embeddings are compared.
        bundled: whether it travels with bdbnet.
    """

    file: str
    sha256: str
    size: int
    trained_on: str
    terms: str
    image_size: tuple[int, int]
    url: str | None = None
    obtain: str = ""
    published: Mapping[str, float] = field(default_factory=dict)
    distance: str = "euclidean"
    bundled: bool = False


_TORCHREID = "torchreid's model zoo, https://kaiyangzhou.github.io/deep-person-reid/MODEL_ZOO"
_DRIVE = "https://drive.google.com/uc?export=download&id="  # where torchreid keeps its files
ENTRIES: dict[str, Entry] = {
    "bdb_osnet_x0_25_synthetic": Entry(
        file="model.safetensors",
        sha256="a9ab391a513ce0e6e074b3fa8eae35bbea954a70709531c9a0f4b7a9c451a696",
        size=581_296,
        trained_on="synthetic_reid",
        terms="of bdbnet (MIT); trained on rendered figures alone, so for demonstrations and tests, not for finding people",
        image_size=(64, 32),
        published={"rank1": 52.4, "mAP": 38.9},
        bundled=True,
    ),
    "osnet_x0_25_market1501": Entry(
        file="osnet_x0_25_market1501.pth",
        sha256="c0ff09177a21417a19bc73bbf5af4eb5d2b097c2074ed35e67819ee6cd93612c",
        size=2_462_783,
        trained_on="market1501",
        terms=f"torchreid, MIT; {_RESEARCH}",
        image_size=(256, 128),
        url=f"{_DRIVE}1z1UghYvOTtjx7kEoRfmqSMu-z62J6MAj",
        obtain=_TORCHREID,
        published={"rank1": 91.2, "mAP": 75.0},
    ),
    "osnet_x0_25_msmt17": Entry(
        file="osnet_x0_25_msmt17.pth",
        sha256="6f57607fed9f502b9efed546108132ee715df5a5b6e6932c6269bacb47f59f99",
        size=3_057_863,
        trained_on="msmt17",
        terms=f"torchreid, MIT; {_RESEARCH}",
        image_size=(256, 128),
        url=f"{_DRIVE}1sSwXSUlj4_tHZequ_iZ8w_Jh0VaRQMqF",
        obtain=_TORCHREID,
        published={"rank1": 61.4, "mAP": 29.5},
    ),
}


def is_named(source: str) -> bool:
    """Whether a source of a network is by its form the name of one rather than a path."""
    scheme, _, name = source.partition(":")
    return source in ENTRIES or (scheme in (*SCHEMES, HUB) and bool(name))

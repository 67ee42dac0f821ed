"""Catalogue of the datasets: published sizes, expected layout, where to get them and under which terms."""

from dataclasses import dataclass, field

from bdbnet.datasets.manifest import Role, SplitCounts

UNTRIED = "Unverified: layout and counts are from documentation; they were not tried on the authors' files."


@dataclass(frozen=True)
class DatasetFacts:
    """One dataset as its authors publish it.

    `layout` is the folder that the reader expects; `archives` names the authors' files for `archive=`; `obtain` says
    where to get them and under which terms. `counts` excludes junk images; identity 0 of a person dataset (distractors)
    counts as one gallery identity. Roles whose size is not published are absent. `test_only`: it need not have training images.
    `splits`: the option `split` is a number from 1 to this, and results are published as the mean over all of them; 0: no splits.
    Where `tried` is false, layout and counts are from documentation and were not tried on the authors' files.
    """

    title: str
    paper: str
    layout: str
    archives: str = ""
    obtain: str = ""
    counts: dict[Role, SplitCounts] = field(default_factory=dict)
    test_only: bool = False
    splits: int = 0
    tried: bool = True


def _person(
    train: tuple[int, int], query: tuple[int, int], gallery: tuple[int, int], cameras: int | None
) -> dict[Role, SplitCounts]:
    sizes: dict[Role, tuple[int, int]] = {"train": train, "query": query, "gallery": gallery}
    return {role: SplitCounts(identities, images, cameras) for role, (identities, images) in sizes.items()}


def _retrieval(train: tuple[int, int], test: tuple[int, int]) -> dict[Role, SplitCounts]:
    return _person(train, test, test, 0)


def _test_only(identities: int, images: int) -> dict[Role, SplitCounts]:
    """Counts of as many queries as gallery images, of one camera each."""
    return {"query": SplitCounts(identities, images, 1), "gallery": SplitCounts(identities, images, 1)}


_MARKET_LAYOUT = """\
bounding_box_train/  12,936 images, such as 0002_c1s1_000451_03.jpg
query/                3,368 images
bounding_box_test/   15,913 images (identity 0000 = distractors) and junk (identity -1, left out)"""
_MARKET_PAPER = 'Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015'
_PEOPLE = "research use only; the images show real people: do not publish or pass them on"
_MARKET_OBTAIN = f"from the authors' project page (Liang Zheng); {_PEOPLE}"
_CUHK03_LAYOUT = """\
either the pre-cut images (CUHK03-NP):
  {kind}/bounding_box_train/  {train} images, such as 0003_c1_1.png
  {kind}/query/               1,400 images
  {kind}/bounding_box_test/   {gallery} images
or the authors' file and the new protocol's index, cut into images_{kind}/ on first use:
  cuhk-03.mat (also in cuhk03_release/)
  cuhk03_new_protocol_config_{kind}.mat"""
_CUHK03_PAPER = (
    'Li et al., "DeepReID: Deep Filter Pairing Neural Network for Person Re-identification", CVPR 2014; new protocol: '
    'Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017'
)
_CUHK03_OBTAIN = f"cuhk03_release.zip from CUHK after signing their form, CUHK03-NP from Zhun Zhong; {_PEOPLE}"
_MSMT17_LAYOUT = """\
{train}/0000/ ...    32,621 images of 1,041 people
{test}/0000/ ...     93,820 images of 3,060 people
list_train.txt, list_val.txt (both train), list_query.txt, list_gallery.txt"""
_MSMT17_PAPER = (
    'Wei et al., "Person Transfer GAN to Bridge Domain Gap for Person Re-Identification", CVPR 2018 (faces {faces})'
)
_MSMT17_OBTAIN = (
    f"from Peking University after signing a release agreement; V2 replaced V1, with faces masked; {_PEOPLE}"
)
_MSMT17_COUNTS = _person((1_041, 32_621), (3_060, 11_659), (3_060, 82_161), 15)


def _cuhk03(kind: str, train: int, gallery: int) -> DatasetFacts:
    return DatasetFacts(
        title=f"CUHK03, new protocol, {kind}",
        paper=_CUHK03_PAPER,
        layout=_CUHK03_LAYOUT.format(kind=kind, train=f"{train:,}", gallery=f"{gallery:,}"),
        archives="cuhk03-np.zip, or "
        "[cuhk03_release.zip,cuhk03_new_protocol_config_detected.mat,cuhk03_new_protocol_config_labeled.mat]",
        obtain=_CUHK03_OBTAIN,
        counts=_person((767, train), (700, 1_400), (700, gallery), 2),
    )


def _cuhk03_old(kind: str) -> DatasetFacts:
    return DatasetFacts(
        title=f"CUHK03, first protocol (20 splits), {kind}",
        paper='Li et al., "DeepReID: Deep Filter Pairing Neural Network for Person Re-identification", CVPR 2014',
        layout="""\
cuhk-03.mat (also in cuhk03_release/): the authors' images and their 20 splits, which test 100 people each; the images are
cut into images_all_{kind}/ on first use""".replace("{kind}", kind),
        archives="cuhk03_release.zip",
        obtain=f"cuhk03_release.zip from CUHK after signing their form; {_PEOPLE}",
        splits=20,
        tried=False,
    )


def _msmt17(version: int, train: str, test: str, faces: str) -> DatasetFacts:
    return DatasetFacts(
        title=f"MSMT17 V{version}",
        paper=_MSMT17_PAPER.format(faces=faces),
        layout=_MSMT17_LAYOUT.format(train=train, test=test),
        archives=f"MSMT17_V{version}.tar.gz",
        obtain=_MSMT17_OBTAIN,
        counts=_MSMT17_COUNTS,
    )


_VEHICLEID_COUNTS = {
    "vehicleid_small": (800, 6_493),
    "vehicleid_medium": (1_600, 13_377),
    "vehicleid_large": (2_400, 19_777),
}
_VERI_WILD_COUNTS = {
    "veri_wild_small": (3_000, 38_861),
    "veri_wild_medium": (5_000, 64_389),
    "veri_wild_large": (10_000, 128_517),
}


def _vehicleid(name: str) -> DatasetFacts:
    vehicles, images = _VEHICLEID_COUNTS[name]
    return DatasetFacts(
        title=f"PKU VehicleID, {name.rpartition('_')[2]} test set",
        paper='Liu et al., "Deep Relative Distance Learning: Tell the Difference Between Similar Vehicles", CVPR 2016',
        layout=f"""\
image/                                 221,567 images, such as 0050025.jpg
train_test_split/train_list.txt        113,346 lines "image vehicle", such as 0050025 9
{f"train_test_split/test_list_{vehicles}.txt":39}{images:7,} lines""",
        archives="VehicleID_V1.0.zip",
        obtain="from Peking University (NELVT) on request; research use only",
        counts=_person((13_164, 113_346), (vehicles, images), (vehicles, images), 0),
        tried=False,
    )


def _veri_wild(name: str) -> DatasetFacts:
    vehicles, gallery = _VERI_WILD_COUNTS[name]
    return DatasetFacts(
        title=f"VERI-Wild, {name.rpartition('_')[2]} test set",
        paper='Lou et al., "VERI-Wild: A Large Dataset and a New Method for Vehicle Re-Identification in the Wild", CVPR 2019',
        layout=f"""\
images/00001/000001.jpg ...            416,314 images in a folder for each vehicle
in train_test_split/:
  train_list_start0.txt (or train_list.txt)            277,797 lines such as 00001/000001.jpg 0 133
{f"  test_{vehicles}_id_query.txt (or test_{vehicles}_query.txt)":54} {vehicles:6,} lines: image, a number, camera
{f"  test_{vehicles}_id.txt (or test_{vehicles}.txt)":54} {gallery:6,} lines
  vehicle_info.txt, where lists name no cameras: 00001/000001;133;...""",
        archives="VERI-Wild.zip, packed from the authors' lists and what their images.part01.rar and further parts hold",
        obtain="from Peking University (IMRE) after signing their agreement; research use only",
        counts=_person((30_671, 277_797), (vehicles, vehicles), (vehicles, gallery), None),
        tried=False,
    )


FACTS: dict[str, DatasetFacts] = {
    "market1501": DatasetFacts(
        title="Market-1501",
        paper=_MARKET_PAPER,
        layout=_MARKET_LAYOUT,
        archives="Market-1501-v15.09.15.zip",
        obtain=_MARKET_OBTAIN,
        counts=_person((751, 12_936), (750, 3_368), (751, 15_913), 6),
    ),
    "market1501_500k": DatasetFacts(
        title="Market-1501 with 500,000 distractors",
        paper=_MARKET_PAPER,
        layout=f"{_MARKET_LAYOUT}\ndistractors_500k/ (or images/)  500,000 further gallery images",
        archives="[Market-1501-v15.09.15.zip,distractors_500k.zip]",
        obtain=_MARKET_OBTAIN,
        counts={"train": SplitCounts(751, 12_936, 6), "query": SplitCounts(750, 3_368, 6)},
    ),
    "market1501_multi_query": DatasetFacts(
        title="Market-1501, multi-query",
        paper=_MARKET_PAPER,
        layout=f"{_MARKET_LAYOUT}\ngt_bbox/             all hand-drawn boxes of the queries' identities and cameras",
        archives="Market-1501-v15.09.15.zip",
        obtain=_MARKET_OBTAIN,
        counts={"train": SplitCounts(751, 12_936, 6), "gallery": SplitCounts(751, 15_913, 6)},
    ),
    "dukemtmc_reid": DatasetFacts(
        title="DukeMTMC-reID",
        paper='Zheng et al., "Unlabeled Samples Generated by GAN Improve the Person Re-identification Baseline in vitro", '
        'ICCV 2017; Ristani et al., "Performance Measures and a Data Set for Multi-Target, Multi-Camera Tracking", 2016',
        layout="""\
bounding_box_train/  16,522 images, such as 0001_c2_f0046182.jpg
query/                2,228 images
bounding_box_test/   17,661 images""",
        archives="DukeMTMC-reID.zip",
        obtain=f"no longer: its authors withdrew it in 2019. Copies that exist: {_PEOPLE}",
        counts=_person((702, 16_522), (702, 2_228), (1_110, 17_661), 8),
    ),
    "cuhk03_detect": _cuhk03("detected", 7_365, 5_332),
    "cuhk03_label": _cuhk03("labeled", 7_368, 5_328),
    "msmt17_v1": _msmt17(1, "train", "test", "visible"),
    "msmt17_v2": _msmt17(2, "mask_train_v2", "mask_test_v2", "masked"),
    "cub200": DatasetFacts(
        title="CUB-200-2011, cropped",
        paper='Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011',
        layout="""\
images/              200 folders of classes, 11,788 images
images.txt, image_class_labels.txt, bounding_boxes.txt""",
        archives="CUB_200_2011.tgz",
        obtain="from Caltech's data repository; non-commercial research; the photographers hold the copyright",
        counts=_retrieval((100, 5_864), (100, 5_924)),
    ),
    "cars196": DatasetFacts(
        title="CARS196, cropped",
        paper='Krause et al., "3D Object Representations for Fine-Grained Categorization", 3dRR 2013',
        layout="""\
either:
  car_ims/           16,185 images, such as 000001.jpg
  cars_annos.mat
or:
  cars_train/        8,144 images, such as 00001.jpg
  cars_test/         8,041 images
  devkit/cars_train_annos.mat
  cars_test_annos_withlabels.mat (also in devkit/)""",
        archives="[car_ims.tgz,cars_annos.mat], or [cars_train.tgz,cars_test.tgz,car_devkit.tgz,cars_test_annos_withlabels.mat]",
        obtain="Stanford's page is often unreachable, mirrors exist; non-commercial research",
        counts=_retrieval((98, 8_054), (98, 8_131)),
    ),
    "sop": DatasetFacts(
        title="Stanford Online Products",
        paper='Oh Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016',
        layout="""\
Ebay_train.txt       59,551 images of 11,318 products
Ebay_test.txt        60,502 images of 11,316 products
bicycle_final/ ... toaster_final/    12 folders of images""",
        archives="Stanford_Online_Products.zip",
        obtain="from Stanford's CVGL page; research use",
        counts=_retrieval((11_318, 59_551), (11_316, 60_502)),
    ),
    "inshop": DatasetFacts(
        title="In-Shop Clothes Retrieval (DeepFashion)",
        paper='Liu et al., "DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich Annotations", CVPR 2016',
        layout="""\
img/MEN/ ... img/WOMEN/ ...          52,712 images (also in Img/img/)
list_eval_partition.txt              (also in Eval/)""",
        archives="[img.zip,list_eval_partition.txt]",
        obtain="from the DeepFashion project page after signing their form; non-commercial research",
        counts=_person((3_997, 25_882), (3_985, 14_218), (3_985, 12_612), 0),
    ),
    "cuhk03_detect_old": _cuhk03_old("detected"),
    "cuhk03_label_old": _cuhk03_old("labeled"),
    "occluded_duke": DatasetFacts(
        title="Occluded-DukeMTMC",
        paper='Miao et al., "Pose-Guided Feature Alignment for Occluded Person Re-Identification", ICCV 2019',
        layout="""\
bounding_box_train/  15,618 images, such as 0001_c2_f0046182.jpg
query/                2,210 images, all occluded
bounding_box_test/   17,661 images""",
        archives="Occluded_Duke.zip, packed from what the authors' script makes of DukeMTMC-reID.zip and their lists",
        obtain=f"lists and script from the authors; the images are DukeMTMC-reID's, withdrawn in 2019: {_PEOPLE}",
        counts=_person((702, 15_618), (519, 2_210), (1_110, 17_661), 8),
        tried=False,
    ),
    "occluded_reid": DatasetFacts(
        title="Occluded-REID",
        paper='Zhuo et al., "Occluded Person Re-identification", ICME 2018',
        layout="""\
occluded_body_images/001/ ... (or query/)     1,000 queries of 200 people, such as 001/001_01.tif
whole_body_images/001/ ... (or gallery/)      1,000 gallery images of the same people""",
        archives="Occluded_REID.zip",
        obtain=f"from the authors; non-commercial {_PEOPLE}",
        counts=_test_only(200, 1_000),
        test_only=True,
        tried=False,
    ),
    "partial_reid": DatasetFacts(
        title="Partial-REID",
        paper='Zheng et al., "Partial Person Re-identification", ICCV 2015',
        layout="""\
partial_body_images/    300 queries of 60 people, such as 001_001.jpg (what is seen of the person, cut out)
occluded_body_images/   300 uncut ones (dataset.options.query=occluded)
whole_body_images/      300 gallery images""",
        archives="Partial_REID.zip",
        obtain=f"from the authors (Sun Yat-sen University); {_PEOPLE}",
        counts=_test_only(60, 300),
        test_only=True,
        tried=False,
    ),
    "partial_ilids": DatasetFacts(
        title="Partial-iLIDS",
        paper='Zheng, Gong and Xiang, "Person Re-identification by Probabilistic Relative Distance Comparison", CVPR 2011; partial '
        'images: He et al., "Deep Spatial Feature Reconstruction for Partial Person Re-identification", CVPR 2018',
        layout="""\
Probe/ (or query/)       119 partial queries of 119 people, such as 001.jpg
Gallery/ (or gallery/)   119 whole images""",
        archives="Partial_iLIDS.zip",
        obtain=f"from the authors; {_PEOPLE}",
        counts=_test_only(119, 119),
        test_only=True,
        tried=False,
    ),
    "veri776": DatasetFacts(
        title="VeRi-776",
        paper='Liu et al., "A Deep Learning-Based Approach to Progressive Vehicle Re-identification for Urban Surveillance", '
        "ECCV 2016",
        layout="""\
image_train/   37,778 images, such as 0001_c001_00016450_0.jpg
image_query/    1,678 images
image_test/    11,579 images""",
        archives="VeRi.zip",
        obtain="from the authors (Xinchen Liu) on request; research use only",
        counts=_person((576, 37_778), (200, 1_678), (200, 11_579), None),
        tried=False,
    ),
    **{name: _vehicleid(name) for name in _VEHICLEID_COUNTS},
    **{name: _veri_wild(name) for name in _VERI_WILD_COUNTS},
    "inat2018": DatasetFacts(
        title="iNaturalist-2018, retrieval",
        paper='Van Horn et al., "The iNaturalist Species Classification and Detection Dataset", CVPR 2018; lists: Brown et al., '
        '"Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval", ECCV 2020',
        layout="""\
train_val2018/Aves/2761/ ...                       461,939 images
Inat_dataset_splits/Inaturalist_train_set1.txt     325,846 lines such as train_val2018/Aves/2761/0a1b2c.jpg
Inat_dataset_splits/Inaturalist_test_set1.txt      136,093 lines (or both lists beside train_val2018/)""",
        archives="[train_val2018.tar.gz,Inat_dataset_splits.zip]",
        obtain="images from the iNaturalist competition of 2018, lists from Brown et al.; non-commercial research; the "
        "photographers hold the copyright",
        counts=_retrieval((5_690, 325_846), (2_452, 136_093)),
        tried=False,
    ),
    "mot": DatasetFacts(
        title="Crops of videos in the format of MOTChallenge",
        paper='Milan et al., "MOT16: A Benchmark for Multi-Object Tracking", 2016; Dendorfer et al., "MOTChallenge: A Benchmark '
        'for Single-Camera Multiple Target Tracking", IJCV 2021',
        layout="""\
img1/000001.jpg ...    the frames of one sequence; sequences may lie up to three folders down, as MOT17/train/MOT17-02-FRCNN/
gt/gt.txt              a line for each box: frame,id,left,top,width,height,flag,class,visibility (flag and later: optional)
seqinfo.ini            optional: imWidth and imHeight""",
        archives="MOT17.zip, or another one of MOTChallenge",
        obtain=f"from MOTChallenge (CC BY-NC-SA 3.0), or your own; {_PEOPLE}",
        test_only=True,
        tried=False,
    ),
    "market_layout": DatasetFacts(
        title="Your own images in the folders of Market-1501",
        paper="none: the layout is that of Zheng et al., ICCV 2015",
        layout="""\
bounding_box_train/  images whose names begin with identity and camera, such as 0002_c1s1_000451_03.jpg
query/               the same
bounding_box_test/   the same; identity -1 is junk and left out""",
        archives="any archive of these three folders",
        obtain="yours",
    ),
}  # fmt: skip

PUBLISHED_COUNTS: dict[str, dict[Role, SplitCounts]] = {name: facts.counts for name, facts in FACTS.items()}

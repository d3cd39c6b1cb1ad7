"""What writes a benchmark's files, by the benchmark's name."""

from tests.eval.tasks import picture_sets as pictures
from tests.eval.tasks import video_sets as videos
from tests.eval.tasks.tfds_set import coco_tfds

_PICTURES = (
    *(pictures.coco, pictures.okvqa, pictures.vqav2, pictures.vizwiz, pictures.flickr30k),
    *(pictures.visdial, pictures.textvqa, pictures.hateful_memes, pictures.imagenet),
    *(pictures.nocaps, pictures.textcaps, pictures.scienceqa, pictures.custom),
)
_VIDEOS = (
    *(videos.msvdqa, videos.vatex, videos.msrvttqa, videos.ivqa, videos.youcook2, videos.star),
    *(videos.nextqa, videos.nextqa_choice, videos.rareact, videos.kinetics700),
)
WRITERS = {function.__name__: function for function in (*_PICTURES, *_VIDEOS, coco_tfds)}

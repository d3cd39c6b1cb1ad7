"""What answers are worth, as each benchmark's own program counts it; one small room a metric.

Every metric is a function `score(predictions, references, …)` (or one of several in its room) that
takes plain Python values and gives a `Score`: the whole, what each query adds to it, and how both
would be with other queries, which `intervals` needs.

| room | of | for |
|---|---|---|
| `vqa` | VQA accuracy | VQAv2, OK-VQA, VizWiz, TextVQA |
| `cider` `bleu` `rouge` | captions, in the words of `ptb` | COCO, Flickr30k, VATEX, YouCook2 |
| `accuracy` | exact answers, iVQA | MSVDQA, MSRVTTQA, iVQA |
| | ranked classes and choices | ImageNet, Kinetics, STAR, NExT-QA |
| `wups` | answers near in `wordnet` | NExT-QA, open-ended |
| `ndcg` `auc` `rareact` | rankings | VisDial, HatefulMemes, RareAct |
| `intervals` | 95 % intervals over queries, spread over trials | all |

Shares lie between 0 and 1 (CIDEr between 0 and 10); papers print them times 100. METEOR is left
out: its program is Java and its tables of paraphrases are in no package that is kept.
"""

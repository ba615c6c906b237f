"""Every word of the morning page in English and Chinese: one table, for a translator to read.

`{name}` is filled in by the page; `<code>` and the like are ours, what is filled in is escaped.
"""

from __future__ import annotations

NOUNS: dict[str, tuple[str, str, str]] = {
    "document": ("{n} document", "{n} documents", "{n} 篇文档"),
    "new document": ("{n} new document", "{n} new documents", "{n} 篇新文档"),
    "more document": ("{n} more document", "{n} more documents", "另外 {n} 篇文档"),
    "row": ("{n} row", "{n} rows", "{n} 行"),
    "test row": ("{n} test row", "{n} test rows", "{n} 行测试数据"),
    "gate row": ("{n} gate row", "{n} gate rows", "{n} 行把关数据"),
    "cluster": ("{n} cluster", "{n} clusters", "{n} 个聚类"),
    "label": ("{n} label", "{n} labels", "{n} 个标签"),
    "check": ("{n} check", "{n} checks", "{n} 项检查"),
    "example": ("{n} example", "{n} examples", "{n} 个例子"),
    "more file": ("{n} more file", "{n} more files", "另外 {n} 个文件"),
    "file": ("{n} file", "{n} files", "{n} 个文件"),
    "more character": ("{n} more character", "{n} more characters", "另外 {n} 个字符"),
    "minute": ("{n} minute", "{n} minutes", "{n} 分钟"),
    "group": ("{n} group", "{n} groups", "{n} 组"),
}
"""One, many, in Chinese."""

WORDS: dict[str, tuple[str, str]] = {
    # the page
    "title": ("{pipeline}, night of {night}", "{pipeline}，{night} 夜间报告"),
    "night_of": (", night of {night}", "，{night} 夜间报告"),
    "night_number": ("night {n}", "第 {n} 夜"),
    "worth_a_look": ("Worth a look", "请注意"),
    "theme": ("Theme: {name}", "主题：{name}"),
    "theme_auto": ("Theme: as the system", "主题：跟随系统"),
    "theme_light": ("Theme: light", "主题：浅色"),
    "theme_dark": ("Theme: dark", "主题：深色"),
    "keys": (
        "Keys: T theme, L language, / search the map. On the map: arrows go from document to "
        "document, + and − zoom, 0 shows all.",
        "按键：T 主题，L 语言，/ 搜索地图。地图上：方向键在文档间移动，+ 和 − 缩放，0 显示全部。",
    ),
    "made": ("Made by Nightshift on {when}.", "由 Nightshift 生成于 {when}。"),
    "and_more": ("and {n} more", "另有 {n} 项"),
    "rest": ("the rest", "余下部分"),
    "not_shown": ("{n} not shown.", "未显示{n}。"),
    "others": ("the other {n}", "其余 {n} 项"),
    # navigation
    "nav_changed": ("What changed", "有何变化"),
    "nav_why": ("Why", "原因"),
    "nav_look": ("What to look at", "值得一看"),
    "nav_map": ("Map", "地图"),
    "nav_explained": ("Explained answers", "答案解释"),
    "nav_quality": ("Quality", "质量"),
    "nav_model": ("Model", "模型"),
    "nav_classes": ("Classes", "类别"),
    "nav_slices": ("Slices", "分组"),
    "nav_training": ("Training", "训练"),
    "nav_mistakes": ("Mistakes", "错误"),
    "nav_checks": ("Checks", "检查"),
    "nav_clusters": ("Clusters", "聚类"),
    "nav_files": ("Files and rejects", "文件与拒收"),
    "nav_timing": ("Timing", "耗时"),
    # documents
    "documents": ("Documents", "文档"),
    "rows_in": ("rows in", "读入行"),
    "row_in": ("row in", "读入行"),
    "new_documents": ("new documents", "新文档"),
    "duplicates": ("duplicates", "重复"),
    "rejects": ("rejects", "拒收"),
    "no_row": ("No row arrived tonight.", "今晚没有新数据。"),
    "no_row_as_yesterday": (
        "No row arrived tonight, so every table stands as it did yesterday.",
        "今晚没有新数据，所有表与昨天相同。",
    ),
    "holds": ("The pipeline holds {documents} now.", "管道现有 {documents}。"),
    "came_labelled": (
        "Of the new ones, {n} came with a label ({share}).", "其中 {n} 篇带有标签（{share}）。",
    ),
    "none_labelled": ("None of the new ones came with a label.", "新文档都没有标签。"),
    "unknown_tokens": (
        "The tokenizer did not know {share} of tonight's tokens.",
        "分词器不认识今晚 {share} 的词元。",
    ),
    "languages": ("Languages:", "语言："),
    "not_known": ("not known", "未知"),
    "predicted_labels": ("Predicted labels of the new documents", "新文档的预测标签"),
    "under_others": ("and {documents} under {n} other labels.", "另有{documents}属于其他 {n} 个标签。"),
    "by_file": ("New documents by file and label", "按文件和标签统计的新文档"),
    "file": ("File", "文件"),
    "labelled": ("Labelled", "带标签"),
    "labels": ("Labels", "标签"),
    # quality
    "quality": ("Quality", "质量"),
    "on_the_test_rows": ("On the test rows", "测试数据上"),
    "tonight": ("Tonight", "今晚"),
    "change": ("Change", "变化"),
    "linear_column": ("TF-IDF and linear", "TF-IDF 线性模型"),
    "challenger": ("Challenger", "挑战者"),
    "less_is_better": ("less is better", "越低越好"),
    "accuracy": ("Accuracy", "准确率"),
    "macro_f1": ("Macro-F1", "宏 F1"),
    "log_loss": ("Log loss", "对数损失"),
    "calibration_error": ("Calibration error", "校准误差"),
    "measured_on": (
        "Measured on {rows}, which never take part in training or promotion.",
        "在 {rows}上测得，它们从不参与训练或晋升。",
    ),
    "measured_on_margin": (
        "Measured on {rows}, which never take part in training or promotion; chance alone moves "
        "the accuracy by up to {points} points, nineteen times in twenty.",
        "在 {rows}上测得，它们从不参与训练或晋升；二十次中有十九次，仅凭偶然准确率就会变动至多 {points} 个百分点。",
    ),
    "answers_unmeasured": (
        "{champion} answers, but no labelled document is on the test side, so its quality is not "
        "known. Label some documents of the test split to measure it.",
        "{champion} 正在作答，但测试集没有带标签的文档，质量未知。请为测试集的一些文档加上标签。",
    ),
    "no_classifier": (
        "There is no classifier, so there is nothing to measure. It takes labelled documents of at "
        "least two classes to train one.",
        "没有分类器，无从衡量。训练分类器至少需要两个类别的带标签文档。",
    ),
    # the model
    "model": ("Model", "模型"),
    "undecided": (
        "A model was trained tonight, and nothing was decided about it.",
        "今晚训练了一个模型，尚未作出决定。",
    ),
    "not_trained": ("No model was trained tonight.", "今晚没有训练模型。"),
    "interval_bar": (
        "The bar is the 95% interval of the challenger's lead.", "横条是挑战者领先幅度的 95% 区间。",
    ),
    "interval_words": (
        "Paired on the same rows, the challenger's lead is {lead}, 95% interval {low} to {high}.",
        "在同一批数据上成对比较，挑战者领先 {lead}，95% 区间 {low} 至 {high}。",
    ),
    "kept": ("The champion was kept.", "冠军模型保留。"),
    "replaced": ("The champion was replaced.", "冠军模型被替换。"),
    "waiting": ("The challenger waits for a person.", "挑战者等待人工决定。"),
    "gate_both": (
        "{metric} on {rows}: champion {champion}, challenger {challenger}.",
        "{metric}，{rows}：冠军 {champion}，挑战者 {challenger}。",
    ),
    "gate_won": (
        " The challenger alone is right on {wins} of them, the champion alone on {losses}.",
        "其中仅挑战者答对 {wins} 行，仅冠军答对 {losses} 行。",
    ),
    "score": ("Score", "得分"),
    "model_named": ("model {id}", "模型 {id}"),
    "gate_one": (
        "{metric} on {rows}: challenger {challenger}.", "{metric}，{rows}：挑战者 {challenger}。",
    ),
    # labels that changed
    "changed_labels": ("Documents whose label changed", "标签改变的文档"),
    "changed_count": (
        "The new model gives {n} of {of} another label ({share}). The largest flows:",
        "新模型对{of}中的 {n} 篇给出了不同标签（{share}）。标签之间的最大流向：",
    ),
    "changed_none": (
        "The new model gives every document the label that the old one gave.", "新模型给出的标签与旧模型完全相同。",
    ),
    "same_model": (
        "The model is the same, so no label changed.", "模型未变，没有文档的标签改变。",
    ),
    "before": ("Before", "之前"),
    "after": ("After", "之后"),
    # classes
    "classes": ("Classes", "类别"),
    "class": ("Class", "类别"),
    "precision": ("Precision", "精确率"),
    "recall": ("Recall", "召回率"),
    "test_rows": ("Test rows", "测试行"),
    "confusion_caption": (
        "Blue is right, orange is taken for another class; deeper means a larger share of the row. "
        "Rows are true classes, columns predicted ones. Rest on a cell for its numbers.",
        "蓝色为正确，橙色为误判；颜色越深，占该行的比例越大。行为真实类别，列为预测类别。指向格子可看数字。",
    ),
    "weakest": ("The twenty weakest of {n} classes.", "{n} 个类别中最弱的二十个。"),
    "no_confusion": (
        "Which classes are taken for which can be told once labelled test rows exist.",
        "有了带标签的测试数据后，才能知道哪些类别互相混淆。",
    ),
    # slices
    "slices": ("Slices", "分组"),
    "by": ("By", "依据"),
    "slice": ("Slice", "分组"),
    "interval": ("95% interval", "95% 区间"),
    "from_low": ("{low} to {high}", "{low} 至 {high}"),
    "kind_language": ("Language", "语言"),
    "kind_length": ("Length", "长度"),
    "kind_age": ("Age", "时间"),
    "kind_source_file": ("File", "文件"),
    "slices_note": (
        "A slice is coloured where even the upper end of its interval is below the accuracy of all "
        "test rows. Macro-F1 is over the classes met in the slice.",
        "若区间上端仍低于全部测试数据的准确率，该分组会着色。宏 F1 只计分组中出现的类别。",
    ),
    # training
    "training": ("Calibration and training", "校准与训练"),
    "reliability_caption": (
        "Where a dot is on the line, that share of the answers given with this probability is right. "
        "Calibrated: by temperatures fitted on validation rows. Rest on a dot for its numbers.",
        "点落在直线上，表示以该概率给出的答案确有相应比例正确。校准：在验证数据上拟合温度。指向点可看数字。",
    ),
    "curves_caption": (
        "Tonight's training of the network, epoch by epoch.", "今晚网络的训练过程，逐轮显示。",
    ),
    # mistakes
    "mistakes": ("Mistakes and doubtful labels", "错误与可疑标签"),
    "surest_mistakes": ("The surest mistakes", "最有把握的错误"),
    "no_mistakes": ("No test row is answered wrongly.", "测试数据全部答对。"),
    "suspects": ("Labels that are probably wrong", "可能有误的标签"),
    "suspects_note": (
        "{labels} of test and gate rows, which no model was taught, look wrong to confident "
        "learning, which takes {share} of them all for wrong. The margin is the probability of the "
        "label less that of the likeliest other class. Look at all that a model doubts, or at none: "
        "to correct only these makes the test easier for it. The hundred clearest of both are in "
        "MLflow, under <code>evaluation</code>.",
        "测试与把关数据（模型从未学过）中有{labels}被置信学习判为有误，估计全部标签的 {share} 有误。"
        "差值为该标签的概率减去最可能的其他类别的概率。请检查模型怀疑的全部标签，或一个也不改："
        "只改这些会让测试变得更容易。最明显的各一百条在 MLflow 的 <code>evaluation</code> 中。",
    ),
    "no_suspects": (
        "No label of a test or gate row looks wrong.", "测试与把关数据中没有可疑的标签。",
    ),
    "text": ("Text", "文本"),
    "label": ("Label", "标签"),
    "said": ("Said", "答案"),
    "perhaps": ("Perhaps", "也许是"),
    "probability": ("Probability", "概率"),
    "margin": ("Margin", "差值"),
    "near_duplicates": ("Near duplicates", "近似重复"),
    "alike_in_training": ("{share} alike, in training: ", "{share} 相似，训练集中："),
    "checks": ("Checks", "检查"),
    "fails": ("The {who} fails {n} of {checks}.", "{who}未通过{checks}中的 {n} 项。"),
    "passes": ("The {who} passes all {checks}.", "{who}通过了全部{checks}。"),
    "must_hold": (" (must hold)", "（必须通过）"),
    "more_in_mlflow": ("and {n} more, in MLflow.", "另有 {n} 项，见 MLflow。"),
    "none_checked": ("No classifier was there to be checked.", "没有可供检查的分类器。"),
    # clusters
    "clusters": ("Clusters", "聚类"),
    "largest_first": (
        "The largest first, with the documents nearest to the centre of each.",
        "从大到小，附上离中心最近的文档。",
    ),
    "silhouette": (
        "Silhouette {value}: from −1 to 1, and higher where clusters stand apart.",
        "轮廓系数 {value}：−1 到 1，聚类越分开越高。",
    ),
    "davies_bouldin": (
        "Davies–Bouldin {value}: lower where they stand apart. Stability {stability}: 1 where halves "
        "of the documents, grouped anew, agree.",
        "Davies–Bouldin {value}：越分开越低。稳定性 {stability}：两半文档重新聚类若一致则为 1。",
    ),
    "against_labels": (
        "Against the labels: {accuracy} of the labelled documents are in the cluster that stands "
        "for their class, purity {purity}, mutual information {nmi}, Rand index {ari}, V-measure "
        "{v_measure}.",
        "与标签相比：{accuracy} 的带标签文档位于代表其类别的聚类中，纯度 {purity}，互信息 {nmi}，"
        "兰德指数 {ari}，V 度量 {v_measure}。",
    ),
    "cohesion": ("cohesion {value}", "凝聚度 {value}"),
    "new_tonight": ("new tonight", "今晚新生"),
    "unchanged": ("unchanged", "无变化"),
    "by_tonight": ("{change} tonight", "今晚 {change}"),
    "event_born": ("born", "新生"),
    "event_split": ("split", "分裂"),
    "event_merged": ("merged", "合并"),
    "event_ended": ("ended", "结束"),
    "event_grown": ("grown most", "增长最多"),
    "nothing_happened": (
        "No cluster was born, split, merged, ended or grew tonight.",
        "今晚没有聚类新生、分裂、合并、结束或增长。",
    ),
    "from_parents": ("from {names}", "来自 {names}"),
    "took_in": ("took in {names}", "并入 {names}"),
    "went_to": ("its documents went to {names}", "其文档去往 {names}"),
    "went_nowhere": ("its documents went to no other cluster", "其文档没有归入其他聚类"),
    "pedigree": ("The last nights", "最近几夜"),
    "pedigree_caption": (
        "Bars are clusters, as high as they are large; bands are documents that stayed or moved, "
        "and a wedge is what is new. Rest on a part for its name.",
        "竖条为聚类，高度即大小；色带为留下或移动的文档，楔形为新文档。指向各部分可看名称。",
    ),
    "no_clusters": (
        "There are no clusters yet: it takes a handful of documents to find groups among them.",
        "还没有聚类：需要若干文档才能找到分组。",
    ),
    "unassigned": ("Unassigned", "未归类"),
    "far_from_all": (
        "{documents} {are} far from every cluster. Grouped on their own, the tightest first: what "
        "gathers here becomes a cluster once it stands apart.",
        "{documents}远离所有聚类。这里单独分组，最紧密的在前：一旦独立成形就会成为聚类。",
    ),
    # why
    "why": ("Why it changed", "为何变化"),
    "shift": ("Shift of the label mix", "标签构成的变化"),
    "shift_note": (
        "Shares among {new} of tonight and {old} of night {night}. Data is what the old model makes "
        "of the new text, model what the new one makes of the old; what only both together do is "
        "shared equally, so that the two sum to the shift.",
        "今晚{new}与 {night} 夜{old}中的比例。“数据”是旧模型在新文本上的变化，“模型”是新模型在旧文本上的变化；"
        "两者共同造成的部分平分，因此二者之和等于总变化。",
    ),
    "shift_same_model": (
        "Shares among {new} of tonight and {old} of night {night}. The model is the same, so all of "
        "it is the data.",
        "今晚{new}与 {night} 夜{old}中的比例。模型未变，因此全部变化来自数据。",
    ),
    "shift_sampled": (
        "The old model was asked {n} of tonight's documents, chosen at random.",
        "旧模型只回答了今晚随机抽取的 {n} 篇文档。",
    ),
    "no_shift": (
        "Nothing to compare the label mix with: it takes two nights with documents and a classifier.",
        "没有可比较的标签构成：需要两个有文档和分类器的夜晚。",
    ),
    "column_data": ("Data", "数据"),
    "column_model": ("Model", "模型"),
    "column_shift": ("Shift", "变化"),
    "drift": ("Drift", "漂移"),
    "against": ("Against {name}", "与{name}相比"),
    "against_night": ("night {night}", " {night} 夜"),
    "against_training": ("the training set", "训练集"),
    "value": ("Value", "数值"),
    "limit": ("Limit", "界限"),
    "verdict": ("Verdict", "结论"),
    "drifts": ("drifts", "漂移"),
    "steady": ("steady", "平稳"),
    "measure_labels": ("Label mix (PSI)", "标签构成（PSI）"),
    "measure_words": ("Words never seen, more than usual", "生词比例的增加"),
    "measure_unknown": ("Unknown tokens, more", "未知词元的增加"),
    "measure_vectors": ("Embeddings told apart (AUC)", "向量可区分度（AUC）"),
    "measure_confidence": ("Mean probability, change", "平均概率的变化"),
    "short_labels": ("the label mix", "标签构成"),
    "short_words": ("the vocabulary", "词汇"),
    "short_unknown": ("unknown tokens", "未知词元"),
    "short_vectors": ("the embeddings", "向量"),
    "short_confidence": ("confidence", "置信度"),
    "no_drift": ("Nothing drifts against {name}.", "与{name}相比没有漂移。"),
    "some_drift": ("Against {name}, {what} drift.", "与{name}相比，{what}发生漂移。"),
    "one_drifts": ("Against {name}, {what} drifts.", "与{name}相比，{what}发生漂移。"),
    "too_few": (
        "Too few documents to tell drift against {name} ({new} tonight, {old} there).",
        "文档太少，无法判断与{name}相比的漂移（今晚{new}，对方{old}）。",
    ),
    "nothing_drifts": (
        "Nothing new arrived that could have drifted.", "没有新文档，谈不上漂移。",
    ),
    "nothing_before": (
        "There is no earlier night to compare with.", "没有更早的夜晚可供比较。",
    ),
    "arrived": ("Words that arrived:", "新出现的词："),
    "vanished": ("Words that vanished:", "消失的词："),
    "drift_note": (
        "A measure drifts where it is both past its limit and beyond what chance does with so many "
        "documents. PSI compares shares of labels; AUC tells how often the direction between the "
        "two means tells a new document from an old one (0.5: never better than a coin).",
        "只有超过界限并且超出同等文档数下的偶然波动，才算漂移。PSI 比较标签比例；AUC 表示两组均值之间的方向"
        "能在多大程度上区分新旧文档（0.5 等于抛硬币）。",
    ),
    # what to look at
    "look": ("What to look at", "值得一看"),
    "look_note": (
        "Of tonight's documents, a dozen at most of each.", "今晚的文档，每类至多十二篇。",
    ),
    "none_of_these": ("None tonight.", "今晚没有。"),
    "correct_linked": (
        "Each text leads to the review page, where its label is said or corrected:",
        "点击文本即可前往审阅页，在那里标注或更正：",
    ),
    "correct_command": (
        "To say or correct their labels, open the review page:", "如需标注或更正，请打开审阅页：",
    ),
    "unsure": ("Least sure", "最没把握"),
    "surprising": ("Most surprising", "最意外"),
    "disagreeing": ("Label against cluster", "标签与聚类不符"),
    "suspected": ("Suspected wrong labels", "可疑标签"),
    "unsure_note": (
        "The margin between the two likeliest labels is smallest.", "最可能的两个标签之间差值最小。",
    ),
    "surprising_note": (
        "Far from every centroid, in units of the nearest cluster's scale; of texts that are alike, "
        "two at most.",
        "远离所有聚类中心，以最近聚类的尺度为单位；彼此相似的文本至多两篇。",
    ),
    "disagreeing_note": (
        "Their cluster is mostly of another label.", "所在聚类的多数文档属于另一个标签。",
    ),
    "suspected_note": (
        "Of test and gate rows, which no model was taught.", "来自测试与把关数据，模型从未学过。",
    ),
    "cluster": ("Cluster", "聚类"),
    "distance": ("Distance", "距离"),
    "mostly": ("Cluster is mostly", "聚类多为"),
    "purity": ("Purity", "纯度"),
    # explained
    "explained": ("Explained answers", "答案解释"),
    "explained_note": (
        "Blue words speak for the label, orange ones against it: integrated gradients of the network "
        "and the linear path's own contributions, as the blend weighs them. The line under a word "
        "is its attention, which says what was read and is no reason. The curve is the label's "
        "probability, word by word, from 0% to 100%.",
        "蓝色的词支持该标签，橙色的词反对：网络的积分梯度与线性路径的贡献，按混合权重相加。"
        "词下的线是注意力，只说明读了什么，并不是原因。曲线是逐词累积的标签概率，从 0% 到 100%。",
    ),
    "explained_cut": ("Only the first {n} words are shown.", "只显示前 {n} 个词。"),
    "abstained": ("abstained", "弃答"),
    "in_numbers": ("In numbers", "数字"),
    "word": ("Word", "词"),
    "together": ("Together", "合计"),
    "network": ("Network", "网络"),
    "linear": ("Linear", "线性"),
    "attention": ("Attention", "注意力"),
    "so_far": ("Probability so far", "至此的概率"),
    "strongest": ("The {n} strongest of {of} words.", "{of} 个词中作用最强的 {n} 个。"),
    "word_about": (
        "{together} · network {network} · linear {linear} · attention {attention} · {so_far}",
        "{together} · 网络 {network} · 线性 {linear} · 注意力 {attention} · {so_far}",
    ),
    # the map
    "map": ("Map", "地图"),
    "map_caption": (
        "Each dot is a document, {n} of {total}; near means alike to the model, while the distance "
        "between far groups says little.",
        "每个点是一篇文档（{n}/{total}）；相近表示模型认为相似，而远处组间的距离意义不大。",
    ),
    "map_static": (
        "Without scripts, {n} documents are shown. Rest on a dot to read it.",
        "未启用脚本，仅显示 {n} 篇文档。指向点可阅读。",
    ),
    "no_map": ("No map tonight: no document has a place on it.", "今晚没有地图：没有文档有位置。"),
    "colour": ("Colour", "颜色"),
    "by_cluster": ("by cluster", "按聚类"),
    "by_label": ("by label", "按标签"),
    "by_night": ("by night", "按夜晚"),
    "show": ("Show", "显示"),
    "everything": ("everything", "全部"),
    "only_tonight": ("only tonight's", "仅今晚"),
    "search": ("Search", "搜索"),
    "search_here": ("words in the text", "文本中的词"),
    "show_all": ("Show all", "显示全部"),
    "zoom_in": ("Zoom in", "放大"),
    "zoom_out": ("Zoom out", "缩小"),
    "map_label": (
        "Map of documents: arrows go from document to document, plus and minus zoom",
        "文档地图：方向键在文档间移动，加减号缩放",
    ),
    # files, timing
    "files": ("Files and rejects", "文件与拒收"),
    "rows": ("Rows", "行"),
    "kept_rows": ("Kept", "保留"),
    "duplicates_column": ("Duplicates", "重复"),
    "rejects_column": ("Rejects", "拒收"),
    "no_file": ("No new file was found.", "没有发现新文件。"),
    "not_used": ("{rows} could not be used:", "{rows}无法使用："),
    "reject_table": (
        "Each is a row of the table <code>rejects</code>, with its file, line and reason.",
        "每一行都在表 <code>rejects</code> 中，附有文件、行号和原因。",
    ),
    "all_used": ("Every row could be used.", "每一行都可用。"),
    "timing": ("Timing", "耗时"),
    "from_to": ("From {begin} to {end}.", "从 {begin} 到 {end}。"),
    "from_to_stages": (
        "From {begin} to {end}, {seconds} seconds of it in the stages.",
        "从 {begin} 到 {end}，其中各阶段共 {seconds} 秒。",
    ),
    # sentences
    "v_nothing": ("nothing new arrived tonight", "今晚没有新数据"),
    "v_no_document": (
        "{rows} arrived, none of them a new document", "读入 {rows}，没有新文档",
    ),
    "v_first": ("{documents} on the first night", "第一夜有 {documents}"),
    "v_new": ("{documents} tonight", "今晚有 {documents}"),
    "v_no_model": ("no classifier answers yet", "还没有分类器"),
    "v_first_model": ("{champion} is the first model", "{champion} 是第一个模型"),
    "v_took_over": ("{champion} took over", "{champion} 接任"),
    "v_still": ("{champion} still answers", "{champion} 继续作答"),
    "v_unmeasured": (
        "{who}, without test rows to measure it on", "{who}，没有测试数据可衡量",
    ),
    "v_right": ("{who} and is right on {share} of the test rows", "{who}，测试准确率 {share}"),
    "v_as": ("{right}, as {previous}", "{right}，与{previous}持平"),
    "v_better": ("{right}, {points} better than {previous}", "{right}，比{previous}高 {points}"),
    "v_worse": ("{right}, {points} worse than {previous}", "{right}，比{previous}低 {points}"),
    "v_clusters_new": ("{clusters}, {n} of them new", "{clusters}，其中 {n} 个新生"),
    "nothing_moved": (
        "No test rows were labelled, so nothing moved.", "没有带标签的测试数据，无从比较。",
    ),
    "no_yesterday": (
        "This is the first night, so there is no yesterday to compare with.",
        "这是第一夜，没有昨天可比。",
    ),
    "no_figures": (
        "The night before has no figures to compare with.", "前一夜没有可比较的数字。",
    ),
    "same_accuracy": (
        "Accuracy is {now}, the same as {previous}.", "准确率 {now}，与{previous}相同。",
    ),
    "better_accuracy": (
        "Accuracy is {points} better than {previous}: {now} against {then}.",
        "准确率比{previous}高 {points}：{now} 对 {then}。",
    ),
    "worse_accuracy": (
        "Accuracy is {points} worse than {previous}: {now} against {then}.",
        "准确率比{previous}低 {points}：{now} 对 {then}。",
    ),
    "no_linear": ("No linear baseline was measured tonight.", "今晚没有测量线性基线。"),
    "network_alone": (" The network alone: {share}.", "仅网络：{share}。"),
    "linear_equal": (
        "A linear model on TF-IDF alone does as well: both {share}.",
        "仅用 TF-IDF 线性模型效果相同：均为 {share}。",
    ),
    "linear_behind": (
        "The model is {points} ahead of a linear one on TF-IDF: {whole} against {linear}.",
        "模型领先 TF-IDF 线性模型 {points}：{whole} 对 {linear}。",
    ),
    "linear_ahead": (
        "A linear model on TF-IDF, trained on the same rows, is {points} better: {linear} against "
        "{whole}. On this text, the network does not earn its cost.",
        "在同样数据上训练的 TF-IDF 线性模型高出 {points}：{linear} 对 {whole}。对这些文本，网络不值得其成本。",
    ),
    "near_note": ("Nobody looked for near duplicates: {note}.", "没有查找近似重复：{note}。"),
    "near_what": (
        "texts that share {share} or more of their runs of five characters",
        "共有 {share} 或更多五字符片段的文本",
    ),
    "near_none": (
        "No test row is a near duplicate of a training row: {what}.",
        "没有测试数据与训练数据近似重复：{what}。",
    ),
    "near_one": (
        "{n} of {of} ({share}) is a near duplicate of training rows: {what}.",
        "{of}中有 {n} 行（{share}）与训练数据近似重复：{what}。",
    ),
    "near_some": (
        "{n} of {of} ({share}) are near duplicates of training rows: {what}.",
        "{of}中有 {n} 行（{share}）与训练数据近似重复：{what}。",
    ),
    "near_apart": (
        " Without them the accuracy is {apart} instead of {whole}.",
        "去掉它们，准确率为 {apart}，而非 {whole}。",
    ),
    "points_one": ("{n} point", "{n} 个百分点"),
    "points": ("{n} points", "{n} 个百分点"),
    "no_change": ("no change", "无变化"),
    "seconds": ("{n} seconds", "{n} 秒"),
    "hours": ("{h} h {m} min", "{h} 小时 {m} 分钟"),
    "yesterday": ("yesterday", "昨天"),
    "yesterdays_model": ("yesterday's model on the same rows", "昨天的模型（同一批数据）"),
    # the digest
    "d_head": ("{pipeline} {night}, night {n}, {long}", "{pipeline} {night}，第 {n} 夜，{long}"),
    "d_rows": (
        "{rows} in = {documents} kept + {duplicates} duplicates + {rejects} rejects",
        "读入 {rows} = 保留 {documents} + 重复 {duplicates} + 拒收 {rejects}",
    ),
    "d_documents": (
        "{total} in all, {labelled} of tonight's labelled", "共 {total} 篇，今晚 {labelled} 篇带标签",
    ),
    "d_quality": (
        "accuracy {accuracy}, macro-F1 {macro_f1}, on {rows}",
        "准确率 {accuracy}，宏 F1 {macro_f1}，{rows}",
    ),
    "d_unmeasured": (
        "not measured: no classifier, or no test rows", "未测量：没有分类器或测试数据",
    ),
    "d_not_measured": ("not measured", "未测量"),
    "d_undecided": ("nothing was decided", "未作决定"),
    "d_none": ("none", "无"),
    "d_clusters": ("{n}; the largest: {names}", "{n} 个；最大的：{names}"),
    "d_usual": ("nothing unusual", "无异常"),
    "d_more": (" (and {n} more in the report)", "（另有 {n} 项见报告）"),
    "d_moved": ("{n} of {of} have another label", "{of} 篇中 {n} 篇标签改变"),
    "d_no_change": ("no label, no cluster", "标签与聚类均无变化"),
    # in pictures
    "p_champion_better": ("champion better", "冠军更好"),
    "p_equal": ("equal", "相同"),
    "p_challenger_better": ("challenger better", "挑战者更好"),
    "p_uncalibrated": ("uncalibrated, error {error}", "未校准，误差 {error}"),
    "p_calibrated": ("calibrated, error {error}", "已校准，误差 {error}"),
    "p_confidence": ("confidence; upwards: accuracy", "横轴：置信度；纵轴：准确率"),
    "p_loss": ("loss; below: validation accuracy", "损失；下方：验证准确率"),
    "p_kept": ("epoch {n} was kept", "保留第 {n} 轮"),
    "p_training": ("training", "训练"),
    "p_validation": ("validation", "验证"),
    "p_pedigree": (
        "new documents · height: documents · band: where they went",
        "新文档 · 高度：文档数 · 色带：去向",
    ),
    "p_smaller": ("{n} smaller ones", "{n} 个较小的聚类"),
    "p_unassigned": ("unassigned", "未归类"),
    "p_night": ("night {night}: {documents}", "{night} 夜：{documents}"),
    "p_born": ("born", "新生"),
    "p_born_of": ("born out of {parents}", "从 {parents} 中新生"),
    "p_split": ("split", "分裂"),
    "p_split_of": ("split from {parents}", "由 {parents} 分裂而来"),
    "p_merged": ("merged", "合并"),
    "p_merged_of": ("merged with {parents}", "与 {parents} 合并"),
    "p_ended": ("ended in night {night}", "在 {night} 夜结束"),
    "p_ended_of": ("ended in night {night}, heirs: {heirs}", "在 {night} 夜结束，去往：{heirs}"),
    "p_stayed": ("{n} of {of} stayed in {name}", "{of} 篇中 {n} 篇留在 {name}"),
    "p_went": ("{n} of {of} went from {source} to {name}", "{of} 篇中 {n} 篇从 {source} 去往 {name}"),
    "p_new": ("{n} new in {name}", "{name} 新增 {n} 篇"),
    "p_new_documents": ("new documents", "新文档"),
    "p_rows": ("rows: true class, columns: predicted class", "行：真实类别，列：预测类别"),
    "p_largest": ("; the {count} largest of {all} classes", "；{all} 个类别中最大的 {count} 个"),
    # notes of the night
    "note_waiting": (
        "{files} are still being written and wait: {names}", "{files}仍在写入，等待中：{names}",
    ),
    "note_unknown": (
        "{share} of tonight's tokens are unknown (the warning starts at {limit})",
        "今晚 {share} 的词元未知（超过 {limit} 时提示）",
    ),
    "note_no_quality": ("No quality tonight: {note}", "今晚没有质量数据：{note}"),
    "note_checks": (
        "The challenger fails {n} of the checks that it must pass",
        "挑战者有 {n} 项必须通过的检查未通过",
    ),
    "note_ended": ("Clusters that ended: {names}", "结束的聚类：{names}"),
    "people_labelled": (
        "People labelled {documents} since the last training ({names})",
        "自上次训练以来，人工标注了 {documents}（{names}）",
    ),
    "people_wait": ("{people}; they wait for the next one", "{people}；等待下一次训练"),
    "people_learned": (
        "{people}, and tonight's training learned from them", "{people}，今晚的训练已从中学习",
    ),
    "people_helped": (
        "{people}. The model that learned from them is right on {after} of the same {rows} "
        "({moved}; before: {before})",
        "{people}。从中学习的模型在同样的 {rows}上准确率为 {after}（{moved}；之前为 {before}）",
    ),
    "points_more": ("{points} more", "高 {points}"),
    "points_fewer": ("{points} fewer", "低 {points}"),
    "as_before": ("as before", "与之前相同"),
}  # fmt: skip

LINES = {
    "night": "夜晚", "verdict": "结论", "rows": "行", "documents": "文档", "quality": "质量",
    "baseline": "基线", "model": "模型", "clusters": "聚类", "changed": "变化", "drift": "漂移",
    "seconds": "耗时", "notes": "提示",
}  # fmt: skip
"""How the digest's lines begin, in Chinese."""

REASONS: tuple[tuple[str, str], ...] = (
    (r"(.*) \(both were judged by code (\S+); the champion's version was made by (\S+), and serves with that\)",
     "{0}（双方均由代码 {1} 评判；冠军版本由 {2} 制成，并以其应答）"),
    (r"(.*); but (.*)", "{0}；但{1}"),
    (r"(accuracy|macro-F1) (\S+) against (\S+) on (\d+) gate rows \(lead (\S+), 95% interval (\S+) to "
     r"(\S+); (\d+) rows won, (\d+) lost, p (\S+)\)",
     "{0} {1} 对 {2}，{3} 行把关数据（领先 {4}，95% 区间 {5} 至 {6}；赢 {7} 行，输 {8} 行，p {9}）"),
    (r"(the challenger is (?:not )?proved (?:not worse|better)): (.*)", "{0}：{1}"),
    (r"the challenger is proved better", "挑战者经证明更好"),
    (r"the challenger is not proved better", "未能证明挑战者更好"),
    (r"the challenger is proved not worse", "挑战者经证明不更差"),
    (r"the challenger is not proved not worse", "未能证明挑战者不更差"),
    (r"the challenger is (worse|not worse|not proved to be no worse) on the (\d+) gate rows of classes that "
     r"both know \(lead (\S+), 95% interval (\S+) to (\S+)\), (?:and|although it) knows (.*), which the "
     r"champion does not \((.*?)\); (.*)",
     "在双方都认识的类别的 {1} 行把关数据上（领先 {2}，95% 区间 {3} 至 {4}），挑战者{0}；"
     "它认识冠军不认识的 {5}（{6}）；{7}"),
    (r"the challenger is proved better, and knows (.*), which the champion does not \((.*?)\); (.*)",
     "挑战者经证明更好，并认识冠军不认识的 {0}（{1}）；{2}"),
    (r"the challenger is said to know (.*), but (.*?); (.*)", "据称挑战者认识 {0}，但{1}；{2}"),
    (r"right on (\d+) of (\d+) gate rows of them", "其中 {1} 行把关数据答对 {0} 行"),
    (r"no gate row tells how well", "没有把关数据能说明好坏"),
    (r"not proved to be no worse", "未能证明不更差"),
    (r"not worse", "不更差"),
    (r"worse", "更差"),
    (r"((?:class|\w+) .* rows), (.*)", "{0}，{1}"),
    (r"(.*) and (\d+) more", "{0}，另有 {1} 项"),
    (r"class (.*) falls from F1 (\S+) to (\S+) on (\d+) rows", "类别 {0} 的 F1 从 {1} 降至 {2}（{3} 行）"),
    (r"(\w+) (.*) falls from accuracy (\S+) to (\S+) on (\d+) rows",
     "{0} {1} 的准确率从 {2} 降至 {3}（{4} 行）"),
    (r"a document takes (\S+) ms, and took (\S+)", "每篇文档耗时 {0} 毫秒，之前为 {1}"),
    (r"a person decides \(promotion.policy is manual\)(?:; |: )(.*)",
     "由人决定（promotion.policy 为 manual）：{0}"),
    (r"it would be promoted: (.*)", "按规则会晋升：{0}"),
    (r"it would be refused: (.*)", "按规则会拒绝：{0}"),
    (r"promotion.policy is (\w+), and no labelled document is on the gate side",
     "promotion.policy 为 {0}，而把关数据中没有带标签的文档"),
    (r"promotion.policy is always: (.*)", "promotion.policy 为 always：{0}"),
    (r"promotion.policy is always", "promotion.policy 为 always"),
    (r"the challenger fails a check that it must pass: (.*)", "挑战者未通过必须通过的检查：{0}"),
    (r"the challenger cannot answer: (.*)", "挑战者无法作答：{0}"),
    (r"the challenger is the champion, bit by bit", "挑战者与冠军逐位相同"),
    (r"the first classifier becomes champion", "第一个分类器成为冠军"),
    (r"the first model \((.*)\) becomes champion", "第一个模型（{0}）成为冠军"),
    (r"the champion stays: (.*)", "冠军不变：{0}"),
    (r"there is no champion: (.*)", "没有冠军：{0}"),
    (r"a classifier", "分类器"),
    (r"a network that learned clusters", "学习聚类的网络"),
    (r"corpus vectors", "语料向量"),
    (r"((?:a|corpus) [\w ]+), learned anew \((.*)\)", "{0}重新学习（{1}）"),
    (r"((?:a|corpus) [\w ]+) replaces ((?:a|corpus) [\w ]+)", "{0}取代{1}"),
    (r"(.*) promoted version (\d+): (.*)", "{0} 晋升版本 {1}：{2}"),
    (r"version (\d+) was asked for by (.*)", "{1} 要求使用版本 {0}"),
    (r"there are no documents yet", "还没有文档"),
    (r"only (\w+) was asked for", "只要求执行 {0}"),
    (r"nothing new to learn from", "没有可学的新内容"),
    (r"the newest classifier did not become champion, and since then .*",
     "最新的分类器未成为冠军，此后标签、配置和代码都未改变，再训练也是同样结果"),
    (r"no document is labelled", "没有带标签的文档"),
    (r"all (\d+) labelled training documents say (.*): one class",
     "全部 {0} 篇带标签的训练文档都是 {1}，只有一个类别"),
    (r"(\d+) labelled training documents, and train.min_rows is (\d+)",
     "带标签的训练文档有 {0} 篇，而 train.min_rows 为 {1}"),
    (r"no labelled document is on the validation side, which decides when to stop",
     "验证数据中没有带标签的文档，无法决定何时停止"),
    (r"no labelled document is on the test side", "测试数据中没有带标签的文档"),
    (r"(\S+) training and test documents are more than evaluation.near_documents \((\S+)\)",
     "训练与测试文档共 {0} 篇，超过 evaluation.near_documents（{1}）"),
    (r"there is no classifier yet", "还没有分类器"),
    (r"the tokenizer changed", "分词器已改变"),
    (r"the recipe changed", "模型配方已改变"),
    (r"train.when is always", "train.when 为 always"),
    (r"new classes: (.*)", "新类别：{0}"),
    (r"(\d+) new labels", "{0} 个新标签"),
    (r"the champion is (\d+) nights old", "冠军已有 {0} 夜"),
    (r"the corpus has grown from (\S+) to (\S+) documents", "语料从 {0} 篇增至 {1} 篇"),
    (r"train.without_labels asks for (.*)", "train.without_labels 要求 {0}"),
    (r"new tonight: (\d+) topics, of (\d+) documents", "今晚有 {0} 个新主题，共 {1} 篇文档"),
    (r"accuracy", "准确率"),
    (r"macro-F1", "宏 F1"),
)  # fmt: skip
"""What the ledger says of a model in English, as patterns, and the same in Chinese; what a pattern
keeps is translated in turn, and what none matches, a person's words say, stays as it is."""

TERMS: tuple[tuple[str, str], ...] = (
    (r"champion", "冠军"),
    (r"challenger", "挑战者"),
    (r"champion before", "先前的冠军"),
    (r"new champion", "新冠军"),
    (r"(\S+) to (\S+) tokens", "{0} 至 {1} 个词元"),
    (r"(\S+) tokens?", "{0} 个词元"),
    (r"up to a day", "一天以内"),
    (r"up to a week", "一周以内"),
    (r"up to a month", "一个月以内"),
    (r"up to a year", "一年以内"),
    (r"older than a year", "一年以前"),
    (r"unknown", "未知"),
    (r"other", "其他"),
    (r"no text", "没有文本"),
    (r"too long", "过长"),
    (r"id reused", "编号重复使用"),
    (r"forgotten", "已被遗忘"),
    (r"undecodable", "无法解码"),
    (r"wrong fields", "字段数不符"),
    (r"unreadable line", "无法读取的行"),
    (r"line too long", "行过长"),
    (r"label type", "标签类型不符"),
    (r"text type", "文本类型不符"),
)
"""Names that tables have in English, as patterns, and the same in Chinese."""

"""A MONAI Deploy application around a detector: a study in, DICOM Segmentations out.

    HOLOSCAN_MODEL_PATH=BUNDLE python examples/monai/app.py -i STUDY -o RESULTS

It can also be told where its folders are as a MONAI Application Package is, by
HOLOSCAN_INPUT_PATH and HOLOSCAN_OUTPUT_PATH. The series are read by berdiff itself, which
knows the model's orientation and refuses series that are incomplete or irregular.

Run by hand with MONAI Deploy App SDK 4.0 on a CPU; no test runs it, see README.md in this folder.
"""

from pathlib import Path

from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application, ConditionType, Operator, OperatorSpec

from berdiff.runtime import Detector
from berdiff.runtime.folder_run import run_folder
from berdiff.runtime.report import write_report
from berdiff.runtime.run_plan import RunOptions


class AnomalyOp(Operator):
    """Finds anomalies in every series of a folder and writes the results into another.

    Out: "results", one record per series, for whoever wants to know more than the files say.
    """

    def __init__(self, fragment, *args, bundle: Path, source: Path, target: Path, **kwargs):
        self.bundle, self.source, self.target = bundle, source, target
        self.detector = None
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.output("results").condition(ConditionType.NONE)  # nobody has to listen

    def start(self) -> None:
        """Check the bundle, load it and warm up."""
        self.detector = Detector.open(self.bundle)
        self.detector.warm_up()

    def compute(self, op_input, op_output, context) -> None:
        # One series may be cut off and still look regular: ask for what your protocol acquires.
        options = RunOptions(output_types=("dicom-seg",), min_slices=2)
        summary = run_folder(self.detector, self.source, self.target, options)
        write_report(self.target)
        for result in summary.results:
            print(result.name, result.status, result.score, result.verdict, result.verdict_reason)
        if summary.failed or not summary.results:
            raise RuntimeError(f"{len(summary.failed)} of {len(summary.results)} series failed")
        op_output.emit(summary.results, "results")

    def stop(self) -> None:
        if self.detector is not None:
            self.detector.close()


class AnomalyApp(Application):
    """The operator by itself; add yours after it."""

    def compose(self) -> None:
        context = Application.init_app_context(self.argv)
        anomaly = AnomalyOp(
            self,
            CountCondition(self, 1),
            bundle=Path(context.model_path),
            source=Path(context.input_path),
            target=Path(context.output_path),
            name="anomaly",
        )
        self.add_operator(anomaly)


if __name__ == "__main__":
    AnomalyApp().run()

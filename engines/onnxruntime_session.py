"""What every ONNX Runtime session of this project is opened with."""

from __future__ import annotations

from typing import Any

from vsa_rt.errors import EnvironmentUnusable


def session_options(threads: int) -> Any:
    """Options of a session on this many threads; 0 lets ORT choose."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A graph of a stranger may name files of this machine as its weights: there is no folder to find them in.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/nonexistent")
    return options


def refusal(what: str, error: Exception) -> EnvironmentUnusable:
    """ORT's error in one line."""
    return EnvironmentUnusable(f"onnxruntime {what}: {str(error).strip().splitlines()[0]}")


def open_model(model: bytes, options: Any, failed: str) -> Any:
    """An ORT session on the CPU.

    Args:
        model: A whole ONNX model.
        options: Of the session.
        failed: What to say if ORT refuses it.

    Raises:
        EnvironmentUnusable: ORT refuses it; the message has its reason.
    """
    import onnxruntime as ort

    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT's exceptions share no base class of their own
        raise refusal(failed, error) from error

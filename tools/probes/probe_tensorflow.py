"""Asks TensorFlow for the CUDA version that it was built for, and for its GPUs."""

from __future__ import annotations

import tensorflow as tf

from tools.probes.answer import print_answer

if __name__ == "__main__":
    details = tf.config.experimental.get_device_details
    print_answer(
        {
            "cuda": tf.sysconfig.get_build_info().get("cuda_version"),
            "gpus": [details(gpu) for gpu in tf.config.list_physical_devices("GPU")],
        }
    )

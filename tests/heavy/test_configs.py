"""Every recipe at its full depth and precision: first steps as a user starts them."""

import pytest

from tests.test_configs import CIFAR, cifar, first_steps_on_cifar, imagenet, two_steps_of_imagenet  # noqa: F401 - fixtures


@pytest.mark.parametrize("name", CIFAR)
def test_first_steps_on_cifar(name, cifar, tmp_path):  # noqa: F811
    first_steps_on_cifar(name, cifar, tmp_path)


def test_two_steps_of_imagenet(imagenet, tmp_path):  # noqa: F811
    two_steps_of_imagenet(imagenet, tmp_path)

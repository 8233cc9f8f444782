"""Every work by its name. What is added to the library is added here: one line each."""

from tests.benchmarks.outer_steps import (
    DISTRIBUTION,
    GRADIENT,
    REGRESSION,
    TRAJECTORY_10,
    TRAJECTORY_100,
    UNROLLED_32,
    UNROLLED_96,
)
from tests.benchmarks.processes import PROCESSES
from tests.benchmarks.recover import RECOVER_32, RECOVER_224
from tests.benchmarks.students import BATCHES, STUDENTS_CONVNET, STUDENTS_LENET
from tests.benchmarks.work import Work

WORKS: dict[str, Work] = {
    work.name: work
    for work in (
        UNROLLED_96,
        UNROLLED_32,
        DISTRIBUTION,
        GRADIENT,
        REGRESSION,
        TRAJECTORY_10,
        TRAJECTORY_100,
        STUDENTS_CONVNET,
        STUDENTS_LENET,
        BATCHES,
        PROCESSES,
        RECOVER_32,
        RECOVER_224,
    )
}

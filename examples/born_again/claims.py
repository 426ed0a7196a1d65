"""The differences that the study examines, and the paper's results for them.

The paper's result is its error: in how many of its networks the first arm has a lower error than the second. It trains
each network once, without a second training of the teacher, so the teacher itself stands for that. Table 1 is on
CIFAR-10, the others on CIFAR-100; Table 2, with the other objectives and generations, covers only DenseNets (its BAN-1
is ban-1 here).
"""

from __future__ import annotations

from dataclasses import dataclass

from arms import CROSS, Study

Arm = tuple[str, str]  # group and name


@dataclass(frozen=True)
class Claim:
    """A difference of two arms.

    Attributes:
        lower: the number of networks in the paper where the first arm has the lower error.
        networks: the number it compares; 0 if it compares none.
    """

    first: Arm
    second: Arm
    lower: int = 0
    networks: int = 0

    @property
    def ordering(self) -> str:
        """The majority of the paper's networks on the first arm against the second; "" if it compares none."""
        if not self.networks:
            return ""
        return "even" if 2 * self.lower == self.networks else "better" if 2 * self.lower > self.networks else "worse"

    def __str__(self) -> str:
        (of, first), (beside, second) = self.first, self.second
        return f"{first} − {second}" if of == beside else f"{first} − {beside} {second}"


def of_group(study: Study, name: str) -> list[Claim]:
    """The claims below whose arms the group has."""
    pairs = (
        ("ban-1", "second", 6, 8),  # Tables 1 and 3 (Wide-ResNets), 1 and 2 (DenseNets): the same in both families
        ("ban-1", "teacher", 6, 8),
        ("ban+l", "second", 4, 4),
        ("ban+l", "ban-1", 0, 4),
        ("cwtm", "second", 2, 4),  # one higher, one equal
        ("dkpp", "second", 4, 4),
        ("cwtm", "ban-1", 0, 4),
        ("dkpp", "ban-1", 0, 4),
        ("ban-2", "ban-1", 2, 4),  # one higher, one equal
        ("ban-3", "ban-2", 2, 3),
        ("bane-2", "ban-1", 4, 4),
        ("bane-3", "bane-2", 3, 4),
        ("bane-3", "second", 4, 4),
        ("hydra", "bane-3", 0, 0),
        ("hydra", "ban-3", 0, 0),
    )
    arms = {arm for run in study.planned(name, 0) for arm in run.arms}
    return [Claim((name, first), (name, second), *paper) for first, second, *paper in pairs if {first, second} <= arms]


def across() -> list[Claim]:
    """The claims across families: Table 3 gives a DenseNet-90-60 four Wide-ResNet teachers; Table 2 has it alone and
    born again."""
    densenet, wrn = (CROSS, "densenet-from-wrn"), (CROSS, "wrn-from-densenet")
    return [
        Claim(densenet, ("wrn", "teacher"), 4, 4),
        Claim(densenet, ("densenet", "second"), 2, 4),  # the two strongest teachers
        Claim(densenet, ("densenet", "ban-1"), 0, 4),
        Claim(wrn, ("wrn", "second")),
        Claim(wrn, ("wrn", "ban-1")),
        Claim((CROSS, "ban-resnet"), (CROSS, "ban-resnet-plain"), 6, 6),
    ]


def claims_of(study: Study) -> dict[str, list[Claim]]:
    """The claims, by the table they belong to."""
    own = {name: of_group(study, name) for name in study.groups}
    return own | {"across families": across()} if study.crossed else own

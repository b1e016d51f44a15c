"""The Jacobian of a detached network as a linear operator."""

from detjac_lanczos.frozen.drop import expert, head
from detjac_lanczos.frozen.places import Place, attention, layer, mlp, probe
from detjac_lanczos.operators.detach import detach
from detjac_lanczos.operators.jacobian import DetachedJacobian, Jacobian, OrdinaryJacobian
from detjac_lanczos.operators.jacobian_batch import JacobianBatch
from detjac_lanczos.operators.network import Candidate, DetachedNetwork
from detjac_lanczos.operators.pinned import PinnedNetwork
from detjac_lanczos.operators.reconstruction import Reconstruction

__all__ = [
    "Candidate",
    "DetachedJacobian",
    "DetachedNetwork",
    "Jacobian",
    "JacobianBatch",
    "OrdinaryJacobian",
    "PinnedNetwork",
    "Place",
    "Reconstruction",
    "attention",
    "detach",
    "expert",
    "head",
    "layer",
    "mlp",
    "probe",
]

"""SAM-ON: perturb the normalisation layers only."""

import jax

from jaxrl import check

from ._sharpness import Mask, path_of


def norm_layer_mask(where: str = "[Nn]orm|(?<![a-z])bn") -> Mask:
  r"""Chooses the parameters of normalisation layers, by name, for `sam(mask=...)`.

  With :math:`P` the scales and biases of these layers, and :math:`T = 1` for SAM, or as in
  ASAM (see `sam`),

  .. math::
    e_P = \rho \, T^2 g_P / (\|T g_P\|_2 + \epsilon), \qquad e = 0 \text{ elsewhere}, \qquad
    u = \nabla L(w + e).

  The norm is that of the chosen part alone, so that its perturbation has length :math:`\rho`.
  The new gradient is that of all parameters.

  Args:
    where: a regular expression, found anywhere in the path of a parameter
      (`BatchNorm_0/scale`). The default knows the layers of Flax and names such as `bn1`;
      `"^(?!.*[Nn]orm)"` perturbs everything but normalisation layers.

  Returns:
    A Mask without state.

  Raises:
    ValueError: `where` is no regular expression, or matches no parameter, which would be
      training without perturbation.

  Cost: none beyond that of `sam`.

  Notes:
    The paper finds larger radii best than for all parameters. Its script runs ASAM
    (`adaptive=True`) with :math:`\rho = 0.5` and :math:`\eta = 0` unless told otherwise; the
    run that its README shows lets biases adapt as well (`adaptive_bias=True`) and has
    :math:`\rho = 10`. It chooses by the parts `norm` and `bn` of a parameter's name.

  References:
    [258] Mueller, Vlaar, Rolnick, Hein, "Normalization Layers Are All That Sharpness-Aware
      Minimization Needs", 2023, arXiv:2306.04226

  Example:
    >>> import jax.numpy as jnp
    >>> mask = norm_layer_mask()
    >>> params = {"Dense_0": {"bias": jnp.ones(2)}, "LayerNorm_0": {"bias": jnp.ones(2)}}
    >>> mask.update(params, mask.init(params), params)[0]
    {'Dense_0': {'bias': False}, 'LayerNorm_0': {'bias': True}}
  """
  pattern = check.regex("where", where)

  def found(path, leaf):
    del leaf
    return pattern.search(path_of(path)) is not None

  def init(params):
    chosen = jax.tree.map_with_path(found, params)
    if not any(jax.tree.leaves(chosen)):
      paths = [path_of(path) for path, _ in jax.tree.leaves_with_path(params)]
      raise ValueError(f"where={where!r} matches no parameter to perturb; there are {paths[:5]}")
    return ()

  def update(gradient, state, params):
    del gradient
    return jax.tree.map_with_path(found, params), state

  return Mask(init, update)

"""The part of a generated module that is the same for every model: gathering lanes and running them through time."""

TEMPLATE = '''"""Generated from the model {name} version {version}. Not edited by hand."""
import math

import numpy as np
from numba import njit

W = {W}
# contract, reassoc, arcp and nsz only: NaN marks a missing reading, so nnan and ninf must stay off
LANE = dict(fastmath={{"contract", "reassoc", "arcp", "nsz"}}, error_model="numpy", cache=True)
LOOP = dict(error_model="numpy", cache=True, nogil=True)


@njit(**LANE)
def init(S, step):
{init}


@njit(**LANE)
def begin_slot(S):
{begin_slot}


@njit(**LANE)
def advance(S, U, o, h):
    half = 0.5*h
    sixth = h/6.0
{step}


@njit(**LANE)
def plain_advance(S, U, o, h):
    half = 0.5*h
    sixth = h/6.0
{plain_step}


@njit(**LANE)
def update(S, Y):
{update}


@njit(**LANE)
def keep(S, T, o):
{keep}


@njit(**LANE)
def backward(T, o, R, B):
{backward}


@njit(**LANE)
def noise_in(S, B):
{noise_in}


@njit(**LANE)
def start_out(S, R, B):
{start_out}


@njit(**LANE)
def observe(S, B):
{observe}


@njit(**LOOP)
def gather_parameters(S, P, who, C, first):
    """Parameters and constants of lanes first.. into the workspace; padding lanes repeat the last one."""
    for l in range({W}):
        i = min(first + l, who.size - 1)
        for k in range({NP}):
            S[{ROW_P} + k*{W} + l] = P[i, k]
        for k in range({NC}):
            S[{ROW_C} + k*{W} + l] = C[who[i], k]


@njit(**LOOP)
def gather_inputs(B, U, who, first, k, m):
    """Inputs of slot k: m intervals x {NU} inputs."""
    for l in range({W}):
        r = who[min(first + l, who.size - 1)]
        for j in range(m*{NU}):
            B[j*{W} + l] = U[r, k*m*{NU} + j]


@njit(**LOOP)
def gather_reading(B, Y, who, first, k):
    """Reading and weight (0 = missing) of slot k."""
    for l in range({W}):
        y = Y[who[min(first + l, who.size - 1)], k]
        there = y == y
        B[l] = y if there else 0.0
        B[{W} + l] = 1.0 if there else 0.0


@njit(**LOOP)
def filter_lanes(P, who, C, U, Y, m, dt, nsub, full, E, V, nll):
    """P (lanes, {NP}) natural parameters; who (lanes,) row of C, U, Y; U (rows, slots*m*{NU}); Y (rows, slots).

    E, V (lanes, slots): innovation and its variance (0 and 1 where there is no reading), filled where `full`;
    nll (lanes,): minus log-likelihood without the constant log(2 pi)/2 per reading.
    """
    n = Y.shape[1]
    h = dt/nsub
    S = np.zeros({SIZE})
    UB = np.zeros(max(m*{NU}, 1)*{W})
    YB = np.zeros(2*{W})
    quad = np.zeros({W})
    prod = np.ones({W})
    logs = np.zeros({W})
    for first in range(0, who.size, {W}):
        gather_parameters(S, P, who, C, first)
        init(S, m*dt)
        quad[:] = 0.0
        prod[:] = 1.0
        logs[:] = 0.0
        for k in range(n):
            begin_slot(S)
            if k > 0:
                gather_inputs(UB, U, who, first, k - 1, m)
                for j in range(m):
                    for _ in range(nsub):
                        advance(S, UB, j*{NU}*{W}, h)
            gather_reading(YB, Y, who, first, k)
            update(S, YB)
            for l in range({W}):
                e = S[{ROW_E} + l]
                s = S[{ROW_S} + l]
                quad[l] += e*e/s
                prod[l] *= s
            if k % 8 == 7 or k == n - 1:
                for l in range({W}):
                    logs[l] += math.log(prod[l])
                    prod[l] = 1.0
            if full:
                for l in range(min({W}, who.size - first)):
                    E[first + l, k] = S[{ROW_E} + l]
                    V[first + l, k] = S[{ROW_S} + l]
        for l in range(min({W}, who.size - first)):
            nll[first + l] = 0.5*(quad[l] + logs[l])


@njit(**LOOP)
def smooth_lanes(P, who, C, U, Y, m, dt, nsub, noise, start):
    """noise (lanes, slots, {NN}): smoothed noise on the way to each slot; start (lanes, {NN}): smoothed initial noisy states."""
    n = Y.shape[1]
    h = dt/nsub
    S = np.zeros({SIZE})
    UB = np.zeros(max(m*{NU}, 1)*{W})
    YB = np.zeros(2*{W})
    T = np.zeros(n*{NT}*{W})
    R = np.zeros({NN}*{W})
    B = np.zeros(max({NN}, 1)*{W})
    for first in range(0, who.size, {W}):
        gather_parameters(S, P, who, C, first)
        init(S, m*dt)
        for k in range(n):
            begin_slot(S)
            if k > 0:
                gather_inputs(UB, U, who, first, k - 1, m)
                for j in range(m):
                    for _ in range(nsub):
                        advance(S, UB, j*{NU}*{W}, h)
            gather_reading(YB, Y, who, first, k)
            update(S, YB)
            keep(S, T, k*{NT}*{W})
        R[:] = 0.0
        for k in range(n - 1, -1, -1):
            backward(T, k*{NT}*{W}, R, B)
            for l in range(min({W}, who.size - first)):
                for a in range({NN}):
                    noise[first + l, k, a] = B[a*{W} + l]
        init(S, m*dt)
        start_out(S, R, B)
        for l in range(min({W}, who.size - first)):
            for a in range({NN}):
                start[first + l, a] = B[a*{W} + l]


NOISY = {noisy_rows}
noisy_count = {NN}


@njit(**LOOP)
def simulate_lanes(P, who, C, U, m, dt, nsub, noise, start, out):
    """Replay: noise (lanes, slots, {NN}) and start (lanes, {NN}) as smooth_lanes gives them; out (lanes, slots): the signal."""
    n = out.shape[1]
    h = dt/nsub
    S = np.zeros({SIZE})
    UB = np.zeros(max(m*{NU}, 1)*{W})
    B = np.zeros(max({NN}, 1)*{W})
    for first in range(0, who.size, {W}):
        gather_parameters(S, P, who, C, first)
        init(S, m*dt)
        for l in range({W}):
            i = min(first + l, who.size - 1)
            for a in range({NN}):
                S[NOISY[a] + l] = start[i, a]
        for k in range(n):
            if k > 0:
                gather_inputs(UB, U, who, first, k - 1, m)
                for j in range(m):
                    for _ in range(nsub):
                        plain_advance(S, UB, j*{NU}*{W}, h)
                for l in range({W}):
                    i = min(first + l, who.size - 1)
                    for a in range({NN}):
                        B[a*{W} + l] = noise[i, k, a]
                noise_in(S, B)
            observe(S, B)
            for l in range(min({W}, who.size - first)):
                out[first + l, k] = B[l]
'''

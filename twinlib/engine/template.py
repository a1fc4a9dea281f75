"""The part of a generated module that is the same for every model: gathering lanes and running them through time."""

from string import Template

TEMPLATE = Template('''"""Generated from the model $name version $version. Not edited by hand."""
import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

W = $W
BLOCK = 16  # slots that are fetched at once
LOG_2PI = 1.8378770664093453
# contract, reassoc, arcp and nsz only: NaN marks a missing reading, so nnan and ninf must stay off
LANE = dict(fastmath={"contract", "reassoc", "arcp", "nsz"}, error_model="numpy", cache=True)
LOOP = dict(error_model="numpy", cache=True, nogil=True)
NOISY = $NOISY
STATES = $STATES
COV_C = $COV_C
COV_Q = $COV_Q
LOG = $LOG
LIMITS = $LIMITS
E_ROWS = $E
V_ROWS = $V
noisy_count = $NN
sensitive = $SENSITIVE
exact_step = $EXACT_STEP
$functions

@njit(**LOOP)
def beyond(z):
    """phi(z)/Phi(z) of the standard normal distribution, and -2 log Phi(z) - log(2 pi)."""
    if z > -30.0:
        below = 0.5*math.erfc(-z*0.7071067811865476)
        return math.exp(-0.5*(z*z + LOG_2PI))/below, -2.0*math.log(below) - LOG_2PI
    tail = 1.0 - 1.0/(z*z) + 3.0/(z*z*z*z)  # asymptotic series of Mills' ratio
    return -z/tail, z*z + 2.0*math.log(-z/tail)


$parts

@njit(**LOOP)
def begin_lanes(S, P, C, L, first):
    """Parameters of the lanes first.. (the last one is repeated to fill up) and constants of their patients, and what follows from them."""
    for l in range($W):
        i = min(first + l, P.shape[0] - 1)
        for k in range($NP):
            S[$ROW_P + k*$W + l] = P[i, k]
        for k in range($NC):
            S[$ROW_C + k*$W + l] = C[L[0, l], k]
    init(S)


@njit(**LOOP)
def prepare(L, who, first, slot_at):
    """Data rows of the lanes first.. (the last lane is repeated to fill up). Returns the largest number of slots, and whether all rows are the
    same. L (6, $W): data row, first slot, number of slots; then, for the slot at hand (see locate): first step, steps, idle."""
    n = 0
    same = True
    for l in range($W):
        r = who[min(first + l, who.size - 1)]
        L[0, l], L[1, l], L[2, l], L[5, l] = r, slot_at[r], slot_at[r + 1] - slot_at[r], 1
        n = max(n, L[2, l])
        same = same and r == L[0, 0]
    return n, same


@njit(**LOOP)
def fetch_plan(L, k, plan, F):
    """The plans of the next BLOCK slots of every lane from slot k on, lane by lane, as memory likes it; no steps beyond a lane's last slot."""
    for l in range($W):
        for t in range(BLOCK + 1):
            i = min(k + t, L[2, l])
            F[t*$W + l] = plan[L[1, l] + i] & (-1 if i < L[2, l] else -2)


@njit(**LOOP)
def fetch_readings(L, k, y, R):
    """The readings of the next BLOCK slots of every lane, on the log scale where that is the signal's; NaN beyond a lane's last slot."""
    for m in range($NY):
        for l in range($W):
            first = L[1, l] + k
            count = min(max(L[2, l] - k, 0), BLOCK)
            for t in range(count):
                v = y[first + t, m]
                if LOG[m] and v == v:
                    v = math.log(v) if v > 0.0 else np.inf
                R[(m*BLOCK + t)*$W + l] = v
            for t in range(count, BLOCK):
                R[(m*BLOCK + t)*$W + l] = np.nan


@njit(**LOOP)
def locate(L, moved, F, t):
    """The steps of every lane's slot t of the block. Returns the largest number of steps, and how many lanes (listed in `moved`) have a step
    that differs from the one before: the others keep what the step buffer holds."""
    most = 0
    for l in range($W):
        begin = F[t*$W + l] >> 1
        count = (F[(t + 1)*$W + l] >> 1) - begin
        L[3, l] = begin
        L[4, l] = count
        most = max(most, count)
    restless = 0
    for l in range($W):
        idle = 1 if L[4, l] < most else 0
        L[3, l] = (L[3, l] << 1) | (idle | L[5, l] | (F[t*$W + l] & 1))
        restless += L[3, l] & 1
        L[5, l] = idle
    m = 0
    if restless > 0:
        for l in range($W):
            if L[3, l] & 1:
                moved[m] = l
                m += 1
    for l in range($W):
        L[3, l] >>= 1
    return most, m


@njit(**LOOP)
def gather_step(B, L, moved, m, same, j, h, u, dose, share):
    """Step j of the slot: length, rates and doses; nothing for lanes that have fewer steps. True where there is a dose."""
    dosed = False
    if m == $W and same:
        s = L[3, 0] + j
        there = j < L[4, 0]
        for l in range($W):
            B[l] = share*h[s] if there else 0.0
        for i in range($NU):
            v = u[s, i] if there else 0.0
            for l in range($W):
                B[(1 + i)*$W + l] = v
        for i in range($ND):
            v = dose[s, i] if there else 0.0
            dosed = dosed or v != 0.0
            for l in range($W):
                B[(1 + $NU + i)*$W + l] = v
        return dosed
    for a in range(m):
        l = moved[a]
        if j < L[4, l]:
            s = L[3, l] + j
            B[l] = share*h[s]
            for i in range($NU):
                B[(1 + i)*$W + l] = u[s, i]
            for i in range($ND):
                B[(1 + $NU + i)*$W + l] = dose[s, i]
                dosed = dosed or dose[s, i] != 0.0
        else:
            for i in range(1 + $NU + $ND):
                B[i*$W + l] = 0.0
    return dosed


@njit(**LANE)
def classify(R, at, Y, m, low, high):
    """Readings of signal m from row `at` on, taken apart: value, weight (0 = missing) and code (-1, 1 = censored at the lower, upper limit).
    Returns how many there are, and how many are censored."""
    seen = 0.0
    special = 0.0
    for l in range($W):
        v = R[at + l]
        weight = 1.0 if v == v else 0.0
        # no reading, but no missing one either: the patient's likelihood is not finite
        v = v if abs(v) < np.inf else np.nan
        code = -1.0 if v <= low else (1.0 if v >= high else 0.0)
        v = low if v <= low else (high if v >= high else v)
        Y[3*m*$W + l] = v if weight > 0.0 else 0.0
        Y[(3*m + 1)*$W + l] = weight
        Y[(3*m + 2)*$W + l] = code
        seen += weight
        special += abs(code)
    return seen, special


@njit(**LOOP)
def take_readings(R, t, Y):
    """The readings of slot t of the block, all signals (see classify). Returns how many there are, and how many are censored."""
    seen = 0.0
    special = 0.0
    for m in range($NY):
        there, censored = classify(R, (m*BLOCK + t)*$W, Y, m, LIMITS[m][0], LIMITS[m][1])
        seen += there
        special += censored
    return seen, special


@njit(**LOOP)
def likelihood_lanes(P, who, C, slot_at, plan, h, u, dose, y, full, to, E, V, nll):
    """P (lanes, $NP) natural parameters; who (lanes,) data row of each lane; the rest as in kernel.Data.

    nll (lanes,): minus log likelihood without the constant log(2 pi)/2 per reading; E, V (sum of the lanes' slots, $NY): innovation and
    its variance (0 and 1 where there is no reading), filled where `full`, from row to[lane] on.
    """
    S = np.zeros($SIZE)
    B = np.zeros((1 + $NU + $ND)*$W)
    Y = np.zeros(3*$NY*$W)
    F, R = np.zeros((BLOCK + 1)*$W, np.int64), np.zeros($NY*BLOCK*$W)
    L, moved = np.zeros((6, $W), np.int64), np.zeros($W, np.int64)
    for first in range(0, who.size, $W):
        n, same = prepare(L, who, first, slot_at)
        begin_lanes(S, P, C, L, first)
        for k in range(n):
            t = k % BLOCK
            if t == 0:
                fetch_plan(L, k, plan, F)
                fetch_readings(L, k, y, R)
            most, m = locate(L, moved, F, t)
            for j in range(most):
                if gather_step(B, L, moved, m, same, j, h, u, dose, 1.0):
                    jump(S, B)
                advance(S, B)
            seen, special = take_readings(R, t, Y)
            if seen:
$update_seen
            if full:
                for l in range(min($W, who.size - first)):
                    if k < L[2, l]:
                        for m in range($NY):
                            E[to[first + l] + k, m] = S[E_ROWS[m] + l] if seen else 0.0
                            V[to[first + l] + k, m] = S[V_ROWS[m] + l] if seen else 1.0
        for l in range(min($W, who.size - first)):
            nll[first + l] = 0.5*S[$ELL + l]


@njit(**LANE)
def differences(C_, D, step, m):
    """Forward differences of innovation and variance between the copies and the base point."""
    for a in range($NF):
        for l in range($W):
            D[a*$W + l] = (C_[a + 1, E_ROWS[m] + l] - C_[0, E_ROWS[m] + l])/step
            D[($NF + a)*$W + l] = (C_[a + 1, V_ROWS[m] + l] - C_[0, V_ROWS[m] + l])/step


@njit(**LOOP)
def normal_out(S, G, first, size, nll, g, H):
    """Minus log likelihood, gradient (rows, $NF) and Hessian (rows, $NF, $NF) of the lanes of one group."""
    for l in range(min($W, size - first)):
        nll[first + l] = 0.5*S[$ELL + l]
        at = $NF*$W
        for a in range($NF):
            g[first + l, a] = G[a*$W + l]
            for b in range(a + 1):
                H[first + l, a, b] = G[at + l]
                H[first + l, b, a] = G[at + l]
                at += $W


@njit(**LOOP)
def copies_lanes(P, who, C, slot_at, plan, h, u, dose, y, step, nll, g, H):
    """Likelihood with derivatives by copies: P (rows, 1 + $NF, $NP), copy 0 is the base point, copy 1+j has parameter j moved by `step`.

    All copies of $W patients go through time together; memory does not grow with the number of slots.
    """
    copies = P.shape[1]
    C_ = np.zeros((copies, $SIZE))
    B = np.zeros((1 + $NU + $ND)*$W)
    Y = np.zeros(3*$NY*$W)
    D = np.zeros(2*$NF*$W)
    G = np.zeros(($NF + $NF*($NF + 1)//2)*$W)
    F, R = np.zeros((BLOCK + 1)*$W, np.int64), np.zeros($NY*BLOCK*$W)
    L, moved = np.zeros((6, $W), np.int64), np.zeros($W, np.int64)
    for first in range(0, who.size, $W):
        n, same = prepare(L, who, first, slot_at)
        for a in range(copies):
            begin_lanes(C_[a], P[:, a], C, L, first)
        G[:] = 0.0
        for k in range(n):
            t = k % BLOCK
            if t == 0:
                fetch_plan(L, k, plan, F)
                fetch_readings(L, k, y, R)
            most, m = locate(L, moved, F, t)
            for j in range(most):
                dosed = gather_step(B, L, moved, m, same, j, h, u, dose, 1.0)
                for a in range(copies):
                    if dosed:
                        jump(C_[a], B)
                    advance(C_[a], B)
            seen, special = take_readings(R, t, Y)
            if seen:
$update_all
        normal_out(C_[0], G, first, who.size, nll, g, H)


@njit(**LOOP)
def sensitive_lanes(P, who, C, slot_at, plan, h, u, dose, y, nll, g, H):
    """Likelihood with exact derivatives by the natural fitted parameters, from traced sensitivities. P (rows, $NP)."""
    S = np.zeros($SIZE)
    B = np.zeros((1 + $NU + $ND)*$W)
    Y = np.zeros(3*$NY*$W)
    D = np.zeros(2*$NF*$W)
    G = np.zeros(($NF + $NF*($NF + 1)//2)*$W)
    F, R = np.zeros((BLOCK + 1)*$W, np.int64), np.zeros($NY*BLOCK*$W)
    L, moved = np.zeros((6, $W), np.int64), np.zeros($W, np.int64)
    for first in range(0, who.size, $W):
        n, same = prepare(L, who, first, slot_at)
        begin_lanes(S, P, C, L, first)
        G[:] = 0.0
        for k in range(n):
            t = k % BLOCK
            if t == 0:
                fetch_plan(L, k, plan, F)
                fetch_readings(L, k, y, R)
            most, m = locate(L, moved, F, t)
            for j in range(most):
                if gather_step(B, L, moved, m, same, j, h, u, dose, 1.0):
                    jump(S, B)
                advance_sensitive(S, B)
            seen, special = take_readings(R, t, Y)
            if seen:
$update_sensitive
        normal_out(S, G, first, who.size, nll, g, H)


@njit(**LOOP)
def smooth_lanes(P, who, C, slot_at, plan, h, u, dose, y, to, noise, start):
    """noise (sum of the lanes' slots, $NN): smoothed noise on the way to each slot; start (lanes, $NN): smoothed initial noisy states."""
    S = np.zeros($SIZE)
    B = np.zeros(max(1 + $NU + $ND, $NN)*$W)
    Y = np.zeros(3*$NY*$W)
    Z = np.zeros($NN*$W)
    F, R = np.zeros((BLOCK + 1)*$W, np.int64), np.zeros($NY*BLOCK*$W)
    L, moved = np.zeros((6, $W), np.int64), np.zeros($W, np.int64)
    for first in range(0, who.size, $W):
        n, same = prepare(L, who, first, slot_at)
        begin_lanes(S, P, C, L, first)
        T = np.zeros(n*$NT*$W)
        for k in range(n):
            begin_slot(S)
            t = k % BLOCK
            if t == 0:
                fetch_plan(L, k, plan, F)
                fetch_readings(L, k, y, R)
            most, m = locate(L, moved, F, t)
            for j in range(most):
                if gather_step(B, L, moved, m, same, j, h, u, dose, 1.0):
                    jump(S, B)
                advance_map(S, B)
            carry(S)
            special = take_readings(R, t, Y)[1]
$update
            keep(S, T, k*$NT*$W)
        Z[:] = 0.0
        for k in range(n - 1, -1, -1):
$back
            disturb(T, k*$NT*$W, Z, B)
            for l in range(min($W, who.size - first)):
                if k < L[2, l]:
                    for a in range($NN):
                        noise[to[first + l] + k, a] = B[a*$W + l]
        begin_lanes(S, P, C, L, first)
        start_out(S, Z, B)
        for l in range(min($W, who.size - first)):
            for a in range($NN):
                start[first + l, a] = B[a*$W + l]


@njit(**LOOP)
def simulate_lanes(P, who, C, slot_at, plan, h, u, dose, nsub, to, noise, start, resume, state, out):
    """Replay: noise and start as smooth_lanes gives them; out (sum of the lanes' slots, $NY): the signals.

    state (lanes, $NX): all states, as they are at the end; at the beginning too where `resume` (start is not read then).
    """
    S = np.zeros($SIZE)
    B = np.zeros((1 + $NU + $ND)*$W)
    D = np.zeros(max($NN, 1)*$W)
    Z = np.zeros($NY*$W)
    F = np.zeros((BLOCK + 1)*$W, np.int64)
    L, moved = np.zeros((6, $W), np.int64), np.zeros($W, np.int64)
    for first in range(0, who.size, $W):
        n, same = prepare(L, who, first, slot_at)
        begin_lanes(S, P, C, L, first)
        for l in range($W):
            if resume:
                for a in range($NX):
                    S[STATES[a] + l] = state[min(first + l, who.size - 1), a]
            else:
                for a in range($NN):
                    S[NOISY[a] + l] = start[min(first + l, who.size - 1), a]
        for k in range(n):
            t = k % BLOCK
            if t == 0:
                fetch_plan(L, k, plan, F)
            most, m = locate(L, moved, F, t)
            for j in range(most):
                if gather_step(B, L, moved, m, same, j, h, u, dose, 1.0/nsub):
                    jump(S, B)
                for _ in range(nsub):
                    replay(S, B)
            for l in range($W):
                for a in range($NN):
                    D[a*$W + l] = noise[to[min(first + l, who.size - 1)] + k, a] if k < L[2, l] else 0.0
            noise_in(S, D)
            values(S, Z)
            for l in range(min($W, who.size - first)):
                if k < L[2, l]:
                    for m in range($NY):
                        out[to[first + l] + k, m] = Z[m*$W + l]
        for l in range(min($W, who.size - first)):
            for a in range($NX):
                state[first + l, a] = S[STATES[a] + l]


@njit(**LOOP)
def root_times(S, at, l, z, A, out):
    """out = L z, with L L' the covariance whose lower triangle stands in the rows `at` of lane l; A: room for it.

    Cholesky with pivots, the state whose variance is least explained by those before it first: over a short slot the covariance is nearly singular
    and, as it was integrated, not quite positive. Directions without variance get no noise.
    """
    n = 0
    for i in range($NN):
        out[i] = 0.0
        for j in range(i + 1):
            A[i, j] = S[at[n] + l]
            A[j, i] = A[i, j]
            n += 1
    for i in range($NN):
        A[$NN, i] = A[i, i]  # the variance to begin with; 0 = done
    for _ in range($NN):
        p = -1
        most = 1e-9
        for i in range($NN):
            if A[$NN, i] > 0.0 and A[i, i] > most*A[$NN, i]:
                most = A[i, i]/A[$NN, i]
                p = i
        if p < 0:
            break
        root = math.sqrt(A[p, p])
        for i in range($NN):
            if A[$NN, i] > 0.0:
                A[$NN + 1, i] = A[i, p]/root
                out[i] += A[$NN + 1, i]*z[p]
        for i in range($NN):
            for j in range($NN):
                if A[$NN, i] > 0.0 and A[$NN, j] > 0.0:
                    A[i, j] -= A[$NN + 1, i]*A[$NN + 1, j]
        A[$NN, p] = 0.0


@njit(**LOOP)
def disturb_lanes(P, who, C, slot_at, plan, h, u, dose, z, to, noise, start, out, variance):
    """A new course of the noise from standard normal numbers: start (lanes, $NN) holds those of the initial states and receives these states,
    z (sum of the lanes' slots, $NN) those of the slots, whose noise goes to `noise`; out: the signals; variance: of a reading's error."""
    S = np.zeros($SIZE)
    B = np.zeros((1 + $NU + $ND)*$W)
    D = np.zeros(max($NN, 1)*$W)
    Z = np.zeros($NY*$W)
    one = np.zeros($NN)
    A = np.zeros(($NN + 2, $NN))
    F = np.zeros((BLOCK + 1)*$W, np.int64)
    L, moved = np.zeros((6, $W), np.int64), np.zeros($W, np.int64)
    for first in range(0, who.size, $W):
        n, same = prepare(L, who, first, slot_at)
        begin_lanes(S, P, C, L, first)
        for l in range(min($W, who.size - first)):
            root_times(S, COV_C, l, start[first + l], A, one)
            for a in range($NN):
                S[NOISY[a] + l] += one[a]
                start[first + l, a] = S[NOISY[a] + l]
        for k in range(n):
            t = k % BLOCK
            if t == 0:
                fetch_plan(L, k, plan, F)
            begin_slot(S)
            most, m = locate(L, moved, F, t)
            for j in range(most):
                if gather_step(B, L, moved, m, same, j, h, u, dose, 1.0):
                    jump(S, B)
                advance_map(S, B)
            D[:] = 0.0
            for l in range(min($W, who.size - first)):
                if k < L[2, l]:
                    root_times(S, COV_Q, l, z[to[first + l] + k], A, one)
                    for a in range($NN):
                        D[a*$W + l] = one[a]
                        noise[to[first + l] + k, a] = one[a]
            noise_in(S, D)
            values(S, Z)
            for l in range(min($W, who.size - first)):
                if k < L[2, l]:
                    for m in range($NY):
                        out[to[first + l] + k, m] = Z[m*$W + l]
            variances(S, Z)
            for l in range(min($W, who.size - first)):
                if k < L[2, l]:
                    for m in range($NY):
                        variance[to[first + l] + k, m] = Z[m*$W + l]
''')
